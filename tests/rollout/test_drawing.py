"""Drawing tokens: top-p against transformers, and the drawn token against the cumulative distribution."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from agentrl.core.engine import Decoding
from agentrl.objectives import sampling
from agentrl.objectives.sampling import keep_top_p
from agentrl.rollout.drawing import Draw, invert


def logits_of(rows: int, size: int, spread: float, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("size", [5, 128, 600, 1500])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(size: int, spread: float, top_p: float) -> None:
    logits = logits_of(6, size, spread)
    expected = TopPLogitsWarper(top_p)(None, logits).softmax(-1)
    kept = keep_top_p(logits.softmax(-1), top_p)
    kept = kept / kept.sum(-1, keepdim=True)
    different = ((kept > 0) != (expected > 0)).sum(-1)
    assert (different <= 1).all()  # transformers sums in float32, so the last token may fall to either side
    torch.testing.assert_close(kept[different == 0], expected[different == 0], rtol=1e-5, atol=1e-9)
    assert (different == 0).sum() >= 4


def test_a_row_is_sorted_whole_only_where_the_likeliest_do_not_reach_top_p(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.cat([logits_of(2, 1000, 0.1), logits_of(2, 1000, 8.0)])[[0, 2, 1, 3]].softmax(-1)
    mixed = keep_top_p(probs, 0.9)
    assert ((mixed > 0).sum(-1) > sampling.LIKELY).tolist() == [True, False, True, False]
    monkeypatch.setattr(sampling, "LIKELY", 1000)
    torch.testing.assert_close(mixed, keep_top_p(probs, 0.9), rtol=0, atol=0)
    alone = torch.cat([keep_top_p(row[None], 0.9) for row in probs])
    torch.testing.assert_close(mixed, alone, rtol=0, atol=0)


def test_hand_computed_top_p() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    torch.testing.assert_close(keep_top_p(probs, 0.4), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))
    torch.testing.assert_close(keep_top_p(probs, 0.41), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    torch.testing.assert_close(keep_top_p(probs, 1e-9), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))


@given(
    st.integers(1, 400),
    st.lists(st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2**-53)), min_size=1, max_size=8),
    st.integers(0, 99),
    st.floats(0, 0.95),
)
@settings(deadline=None, max_examples=200)
def test_the_drawn_token_is_the_first_whose_sum_exceeds_the_number(
    size: int, numbers: list[float], seed: int, zeros: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(len(numbers), size, generator=generator)
    probs[torch.rand(probs.shape, generator=generator) < zeros] = 0
    probs[:, seed % size] = 0.5  # no row is empty
    drawn = invert(probs, torch.tensor(numbers, dtype=torch.float64)[:, None])
    for row, number, (token,) in zip(probs.double(), numbers, drawn.tolist(), strict=True):
        total = row.sum()
        assert row[token] > 0
        assert row[:token].sum() <= number * total + 1e-9
        assert row[: token + 1].sum() >= number * total - 1e-9


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_come_with_their_distribution(top_p: float) -> None:
    logits = logits_of(1, 7, 1.5).expand(20_000, -1)
    torch.manual_seed(0)
    draw = Draw(Decoding(temperature=0.7, top_p=top_p))
    tokens, logprobs = draw.tokens(logits, [Random(place) for place in range(len(logits))])
    assert logprobs is not None
    probs = TopPLogitsWarper(top_p)(None, logits[:1] / 0.7)[0].softmax(-1)
    shares = torch.bincount(torch.tensor(tokens), minlength=7) / len(tokens)
    torch.testing.assert_close(shares, probs, atol=0.015, rtol=0)
    torch.testing.assert_close(torch.tensor(logprobs), probs.log()[tokens], atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_nan_stops(top_p: float) -> None:
    logits = logits_of(3, 600, 1.0)
    logits[1, 5] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        Draw(Decoding(temperature=1.0, top_p=top_p)).tokens(logits, [Random(0)] * 3)
