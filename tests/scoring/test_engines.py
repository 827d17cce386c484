"""The packed engine gives the numbers of the padded one: log-probs, entropies and gradients."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentrl.core.errors import UserError
from agentrl.scoring import attention, compiled
from agentrl.scoring.attention import KERNEL, Tree, block_mask, sees, tree_attention
from agentrl.scoring.choose import check_engine, scoring_engine
from agentrl.scoring.packed import PackedEngine, why_not_packed
from agentrl.scoring.padded import PaddedEngine
from agentrl.scoring.sequence import Scores, Sequence, score_in_pieces
from agentrl.scoring.trie import Trie
from tests.support.helpers import composed
from tests.support.networks import SIZES, VOCABULARY, network


def drawn(seed: int = 0) -> list[Sequence]:
    """Two prompts that share a beginning, completions that share theirs, one alone, one scored from the start."""
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (size,), generator=generator).tolist()

    system, first, second, opening = ids(20), ids(31), ids(18), ids(17)
    sequences = [scored_from(system + first + opening + ids(size), 51) for size in (9, 14, 3)]
    sequences += [scored_from(system + first + ids(size), 51) for size in (25, 1)]
    sequences += [scored_from(system + second + ids(size), 38) for size in (12, 8)]
    sequences += [scored_from(ids(40), 1), scored_from(system + first + opening + ids(7), 20)]
    long = system + first + opening + ids(30)
    return [*sequences, Sequence(long, [52, 53, 60, 70, len(long) - 1]), Sequence(long[:60], [])]


def scored_from(ids: list[int], start: int) -> Sequence:
    return Sequence(ids, range(start, len(ids)))


def weighed(scores: Scores) -> torch.Tensor:
    """A scalar in which every log-prob and entropy has a weight of its own."""
    total = torch.zeros(())
    for number, (logps, entropies) in enumerate(zip(scores.logps, scores.entropies, strict=True)):
        weights = torch.linspace(0.5, 1.5, len(logps)) * (1 + number)
        total = total + (weights * logps).sum() + 0.3 * (weights.flip(0) * entropies).sum()
    return total


def gradients(engine: Any, model: Any, sequences: list[Sequence]) -> tuple[Scores, dict[str, torch.Tensor]]:
    model.zero_grad()
    scores = engine.score(model, sequences)
    weighed(scores).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return scores, found


def assert_equal(ours: tuple[Scores, dict[str, Any]], plain: tuple[Scores, dict[str, Any]], rtol: float = 1e-5) -> None:
    for name in ("logps", "entropies"):
        for one, other in zip(getattr(ours[0], name), getattr(plain[0], name), strict=True):
            torch.testing.assert_close(one, other, rtol=rtol, atol=1e-5)
    assert ours[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        assert float((ours[1][name] - gradient).norm()) <= rtol * float(gradient.norm()) + 1e-7, name


def packed(model: Any) -> PackedEngine:
    engine = PackedEngine()
    assert why_not_packed(model) is None
    engine.prepare(model)
    return engine


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2", "phi3"])
def test_numbers_and_gradients_are_those_of_the_padded_engine(family: str) -> None:
    model = network(family)
    plain = gradients(PaddedEngine(), model, drawn())
    engine = packed(model)
    assert_equal(gradients(engine, model, drawn()), plain)
    assert_equal(gradients(PaddedEngine(), model, drawn()), plain)  # its attention without a tree is as it was
    assert engine.cost(drawn()) < 0.55 * PaddedEngine().cost(drawn())


def test_scores_are_what_the_logits_say() -> None:
    model = network(temperature=0.7)
    sequence = drawn()[-2]
    logits = model(torch.tensor([sequence.ids])).logits[0] / 0.7
    expected = logits.log_softmax(-1)
    targets = torch.tensor(sequence.ids)[list(sequence.scored)]
    rows = expected[torch.tensor(sequence.scored) - 1]
    scores = packed(model).score(model, [sequence])
    torch.testing.assert_close(scores.logps[0], rows.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropies[0], -(rows.exp() * rows).sum(-1), rtol=1e-5, atol=1e-5)


def test_with_adapters_and_gradient_checkpointing() -> None:
    sequences = drawn()
    found = {}
    for kind in ("padded", "packed", "checkpointed"):
        model: Any = get_peft_model(network(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        if kind == "checkpointed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found[kind] = gradients(PaddedEngine() if kind == "padded" else packed(model), model.train(), sequences)
    assert len(found["padded"][1]) == 12
    assert_equal(found["packed"], found["padded"])
    assert_equal(found["checkpointed"], found["padded"])


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_see_the_tree(reentrant: bool) -> None:
    model = network()
    model.config.use_cache = False
    plain = gradients(PaddedEngine(), model, drawn())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_equal(gradients(packed(model), model.train(), drawn()), plain)


def test_neither_order_nor_cuts_change_anything() -> None:
    model, sequences = network(), drawn()
    engine = packed(model)
    whole = engine.score(model, sequences)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(3)).tolist()
    permuted = engine.score(model, [sequences[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(permuted.logps[place], whole.logps[i], rtol=1e-5, atol=1e-5)
    for budget in (1, 90, 10_000):
        cuts = score_in_pieces(engine, model, sequences, budget)
        assert not cuts.logps[0].requires_grad
        for one, other in zip(cuts.logps, whole.logps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert len(engine.cut([[one] for one in sequences], 10_000)) == 1
    assert len(engine.cut([[one] for one in sequences], 1)) == len(sequences)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=24), min_size=1, max_size=6), st.data())
def test_any_forest_scores_as_its_sequences_alone(ids: list[list[int]], data: Any) -> None:
    model = MODEL
    sequences = [Sequence(one, sorted(data.draw(st.sets(st.integers(1, len(one) - 1))))) for one in ids]
    if not any(one.scored for one in sequences):
        sequences[0] = scored_from(ids[0], 1)
    together = PackedEngine().score(model, sequences)
    for one, logps in zip(sequences, together.logps, strict=True):
        alone = PaddedEngine().score(model, [scored_from(list(one.ids), 1)]).logps[0][[n - 1 for n in one.scored]]
        torch.testing.assert_close(logps, alone, rtol=1e-5, atol=1e-5)


MODEL = network()
packed(MODEL)


def tree_of(sequences: list[list[int]]) -> Tree:
    trie = Trie(1)
    for one in sequences:
        trie.add(one)
    row = trie.row()
    last = torch.cat([torch.full((one.end - one.start,), one.last) for one in row.segments])
    return Tree(row.segments, last)


def test_blocks_and_flex_attention_give_what_the_dense_mask_gives() -> None:
    tree = tree_of([[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7, 7], [1, 8], [9, 9, 9]])
    size = len(tree.last)
    places = torch.arange(size)
    dense = (places[None] <= places[:, None]) & (places[:, None] < tree.last[None])
    assert torch.equal(create_mask(sees(tree.last), None, None, size, size, device="cpu")[0, 0], dense)
    query, key, value = (torch.randn(1, count, size, 8, requires_grad=True) for count in (4, 2, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=dense, enable_gqa=True, scale=0.3
    )
    got, _ = tree_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, tree=tree)
    torch.testing.assert_close(got.transpose(1, 2), expected)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((got.transpose(1, 2) * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    heads = (query.detach(), key.detach(), value.detach())  # on a CPU it has no backward pass
    flexed = flex_attention(*heads, block_mask=block_mask(tree.last), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(flexed, expected)


def test_bfloat16_is_about_as_near_to_float32_as_padded_rows_are() -> None:
    """Queries and keys that a norm gave back in float32 meet values in bfloat16."""
    model = network()

    def logps(engine: Any, bf16: bool) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return torch.cat(engine.score(model, drawn()).logps).float()

    exact, padded, ours = logps(PaddedEngine(), False), logps(PaddedEngine(), True), logps(packed(model), True)
    assert 0 < float((ours - exact).norm()) < 1.5 * float((padded - exact).norm())


def test_bfloat16_gradients_are_as_near_to_float64_as_those_of_a_mask() -> None:
    tree = tree_of([[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7, 7], [1, 8], [9, 9, 9]])
    places = torch.arange(len(tree.last))
    dense = (places[None] <= places[:, None]) & (places[:, None] < tree.last[None])
    torch.manual_seed(0)
    inputs = [torch.randn(1, 4, len(places), 64).bfloat16() for _ in range(3)]
    weights = torch.randn_like(inputs[0])

    def gradients(dtype: torch.dtype, packed: bool) -> list[torch.Tensor]:
        leaves = [one.to(dtype).requires_grad_() for one in inputs]
        if packed:
            out = tree_attention(torch.nn.Identity(), *leaves, None, tree=tree)[0].transpose(1, 2)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=dense)
        return list(torch.autograd.grad((out * weights.to(dtype)).sum(), leaves))

    exact, plain, ours = gradients(torch.float64, False), *(gradients(torch.bfloat16, kind) for kind in (False, True))
    assert {one.dtype for one in ours} == {torch.bfloat16}
    for wanted, masked, got in zip(exact, plain, ours, strict=True):
        assert (got - wanted).norm() < 1.2 * (masked - wanted).norm()


def test_blocks_of_flex_attention_are_those_of_the_mask() -> None:
    """Read off the tree, they equal what computing every pair of places finds."""
    draw = random.Random(0)
    for _ in range(20):
        bases = [[draw.randint(0, 2) for _ in range(draw.randint(1, 700))] for _ in range(3)]
        sequences = [draw.choice(bases)[: draw.randint(1, 700)] + [3] * draw.randint(0, 300) for _ in range(5)]
        tree = tree_of(sequences)
        size = len(tree.last)
        found = block_mask(tree.last)
        wanted = create_block_mask(sees(tree.last), None, None, size, size, device="cpu")
        for name in ("kv", "full_kv", "q", "full_q"):
            counts = getattr(found, f"{name}_num_blocks")
            assert torch.equal(counts, getattr(wanted, f"{name}_num_blocks"))
            for row, count in enumerate(counts[0, 0]):
                pair = (getattr(blocks, f"{name}_indices")[0, 0, row, :count] for blocks in (found, wanted))
                assert torch.equal(*pair)


def test_memory_of_attention_is_linear_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block is larger than its queries plus its keys, and no sibling's keys are in it."""
    calls = []
    forward = attention._forward

    def counted(query: Any, key: Any, *rest: Any, **named: Any) -> Any:
        calls.append(query.shape[2] * key.shape[2])
        return forward(query, key, *rest, **named)

    monkeypatch.setattr(attention, "_forward", counted)
    prompt, branches = [1] * 50, [[n] * 20 for n in range(2, 10)]
    tree = tree_of([prompt + branch for branch in branches])
    query = torch.randn(1, 2, len(tree.last), 8)
    tree_attention(torch.nn.Identity(), query, query, query, None, tree=tree)
    assert sum(calls) == 50 * 50 + 8 * 20 * 20 + 50 * 160


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen3", {"attention_dropout": 0.1}, "uses dropout in attention"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
    ],
)
def test_models_that_trees_would_change_are_told(family: str, changes: dict[str, Any], reason: str) -> None:
    assert reason in (why_not_packed(network(family, **changes)) or "")


def test_other_kernels_and_router_losses_are_told() -> None:
    model = network()
    assert "router" in (why_not_packed(model, router=True) or "")
    model.set_attn_implementation("eager")
    assert "eager" in (why_not_packed(model) or "")


@pytest.mark.parametrize(("window", "cost"), [(500, "packed"), (30, "padded")])
def test_sequences_longer_than_a_sliding_window_are_padded(
    monkeypatch: pytest.MonkeyPatch, window: int, cost: str
) -> None:
    changes = {"sliding_window": window, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    model = network("qwen3", **changes)
    plain = gradients(PaddedEngine(), model, drawn())
    engine = packed(model)
    padded = []
    monkeypatch.setattr(engine._padded, "score", lambda *args: padded.append(1) or PaddedEngine().score(*args))
    assert_equal(gradients(engine, model, drawn()), plain)
    assert bool(padded) == (cost == "padded")


def test_a_saved_model_does_not_name_the_kernel(tmp_path: Any) -> None:
    model = network()
    packed(model)
    model.save_pretrained(tmp_path)
    assert KERNEL not in (tmp_path / "config.json").read_text()


def kept_bytes(engine: Any, model: Any, scale: int) -> int:
    """What a forward pass keeps for the backward pass, weights left out: 8 completions after one prompt."""
    prompt = torch.randint(1, VOCABULARY, (40 * scale,), generator=torch.Generator().manual_seed(1)).tolist()
    sequences = [scored_from([*prompt, n + 1, *prompt[n : n + 10 * scale]], len(prompt)) for n in range(8)]
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = weighed(engine.score(model, sequences))
    assert loss.requires_grad
    return sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in weights)


def test_an_update_keeps_memory_for_distinct_tokens_alone() -> None:
    model = network()
    engine = packed(model)
    small, large = (kept_bytes(engine, model, scale) for scale in (2, 6))
    assert small < 0.5 * kept_bytes(PaddedEngine(), model, 2)
    assert large < 3.3 * small  # three times the tokens


def refused(folder: Any, **changes: Any) -> str:
    """The refusal of trainer.engine=packed for a checkpoint of which only the configuration is there."""
    AutoConfig.for_model("qwen3", **(SIZES | changes)).save_pretrained(folder)
    model = composed("model=custom", f"model.path={folder}", "model.family=other").model
    for name in ("auto", "padded"):
        check_engine(name, model)
    with pytest.raises(UserError) as error:
        check_engine("packed", model)
    return str(error.value)


def test_packed_by_hand_is_refused_where_it_cannot_be(tmp_path: Any) -> None:
    text = refused(tmp_path / "a", attention_dropout=0.1)
    assert text.startswith("trainer.engine=packed: this model cannot be packed: it uses dropout in attention; set")
    said: list[str] = []
    model = network(attention_dropout=0.1)
    assert isinstance(scoring_engine("auto", [model], False, said.append), PaddedEngine) and len(said) == 1
    with pytest.raises(UserError, match="uses dropout in attention"):
        scoring_engine("packed", [model], False, said.append)
    check_engine("packed", composed().model)
    assert isinstance(scoring_engine("auto", [network()], False, said.append), PackedEngine) and len(said) == 1


def test_compiled_layers_are_one_graph_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers as torch traces them, with the kernel of CUDA; its machine code is in test_cuda.py."""

    def flex(module: Any, query: Any, key: Any, value: Any, mask: Any, tree: Any = None, **rest: Any) -> Any:
        if tree is None:
            return attention.tree_attention(module, query, key, value, mask, **rest)
        out = flex_attention(query, key, value, block_mask=tree.blocks, scale=rest["scaling"], enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    def traced(kind: Any) -> Any:
        return torch.compile(kind.forward, dynamic=True, backend="eager")

    def long(size: int) -> list[Sequence]:
        prompt = torch.randint(1, VOCABULARY, (150 + size,), generator=torch.Generator().manual_seed(size)).tolist()
        return [scored_from([*prompt, row + 1, *prompt[row : 40 + size]], len(prompt)) for row in range(4)]

    def with_blocks(tree: Tree) -> None:
        object.__setattr__(tree, "blocks", block_mask(tree.last))

    model = network()
    engine, plain = PackedEngine(compiled=True), PaddedEngine()
    engine.prepare(model)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, KERNEL, flex)
    monkeypatch.setattr(Tree, "__post_init__", with_blocks)
    monkeypatch.setattr(compiled, "_compiled", cache(traced))
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():  # on a CPU the kernel has no backward pass
        for size in (0, 7, 33):
            found, expected = (one.score(model, long(size)).logps for one in (engine, plain))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


def test_a_copy_of_a_compiled_model_has_weights_of_its_own() -> None:
    model = network()
    PackedEngine(compiled=True).prepare(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model.model(ids).last_hidden_state
    copied = copy.deepcopy(model.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(ids).last_hidden_state, before)
    assert not torch.equal(model.model(ids).last_hidden_state, before)
