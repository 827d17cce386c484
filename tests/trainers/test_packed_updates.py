"""Updates are the same whichever engine scores them and however they are cut: losses, gradients, metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.config.algos.traced import SelfDistillation
from agentrl.config.sequences import Lengths
from agentrl.models.adapters import lora_config
from agentrl.objectives.pact import anchor_gates
from agentrl.scoring.packed import PackedEngine
from agentrl.scoring.padded import PaddedEngine
from agentrl.trainers.loss import piece_of, rollouts_after
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import composed, log_probs, make_trainer, rolled_batch, small
from tests.support.methods import ROLLOUTS
from tests.trainers.test_hipo_trainer import SMALL, reply
from tests.trainers.test_kl import move

METHODS = {
    **{name: (f"algo={name}",) for name in ROLLOUTS},
    "pact": ("algo=pact", "algo.q=0.5", "algo.sft_coef=0.5"),
    "pact_prompt": ("algo=pact", "algo.q=0.5", "algo.kl_context=prompt"),
    "pact_turns": ("algo=pact", "algo.q=0", "algo.trace.rendering=turns"),
    "chord": ("algo=chord", "algo.mu.peak=0.25", "algo.mu.valley=0.25"),
    "hipo": ("algo=hipo",),
}
KL = ("algo.kl_coef=0.3", "algo.entropy_coef=0.01")
TWO_UPDATES = ("trainer.minibatch_prompts=1",)  # so that old log-probs are kept


def half_anchored(trainer: Any) -> Any:
    """A rollout batch; where PACT draws which prompts it anchors, the first of two is anchored."""
    if "q" in type(trainer.config.algo).model_fields:
        q = trainer.config.algo.q
        seeds = (seed for seed in range(100) if anchor_gates(q, seed, 0, [0, 1]).tolist() == [q > 0, False])
        trainer.config.seed = next(seeds)
        batch = rolled_batch(trainer)
        assert batch["conditioned"].tolist() == [q == 0] * 4 + [True] * 4
        return batch
    return rolled_batch(trainer)


def moved(method: str, out: Path, *keys: str, **extra: Any) -> tuple[Any, Any]:
    """A trainer and a rollout batch of it, the policy put away from the one that sampled."""
    hipo = method == "hipo"
    options = (*METHODS[method], *(SMALL[:-1] if hipo else ()), *TWO_UPDATES, *KL, *keys)
    trainer = make_trainer((composed if hipo else small)(*options), out, reply if hipo else expert_script, **extra)
    batch = half_anchored(trainer)
    move(trainer, 0.002)  # farther away rounding in float32 is more than 1e-5 of the loss
    trainer.current_gradient_accumulation_steps = 1
    return trainer, batch


def update(trainer: Any, batch: Any, engine: Any, budget: int) -> tuple[float, torch.Tensor, dict[str, float], int]:
    """Loss, gradient and metrics of the whole batch as one update, and the forward passes it took."""
    trainer.scorer, trainer.config.trainer.tokens_per_batch = engine, budget
    trainer._metrics["train"] = defaultdict(list)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    slopes = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), torch.cat(slopes), metrics, len(trainer.cut(batch))


def assert_same(one: Any, other: Any, rtol: float = 1e-5) -> None:
    assert one[0] == pytest.approx(other[0], rel=rtol, abs=1e-6)
    assert float((one[1] - other[1]).norm()) <= rtol * float(other[1].norm())
    assert one[2].keys() == other[2].keys()
    for name, value in other[2].items():
        assert math.isnan(value) or one[2][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


FAST = ("pact_prompt", "luffy")


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in FAST else pytest.mark.slow) for m in METHODS])
def test_engines_and_cuts_make_the_same_update(method: str, aggregation: str, tmp_path: Path) -> None:
    keys = () if method == "luffy" else (f"algo.loss_aggregation={aggregation}",)
    if method == "luffy" and aggregation == "token":
        pytest.skip("LUFFY has one aggregation")
    trainer, batch = moved(method, tmp_path, *keys)
    packed = trainer.scorer
    assert isinstance(packed, PackedEngine)
    plain = update(trainer, batch, PaddedEngine(), 10**6)
    assert plain[1].norm() > 1e-3 and plain[3] == 1
    whole, pieces, rows = (update(trainer, batch, packed, budget) for budget in (10**6, 700, 1))
    assert whole[3] == 1 < pieces[3] < rows[3] == len(batch["completion_ids"]) or method == "hipo"
    for one in (whole, pieces, rows):
        assert_same(one, plain)
    everything = [one for of_rows in trainer.wanted(batch).values() for one in of_rows.values()]
    assert packed.cost(everything) < 0.6 * PaddedEngine().cost(everything)


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "pact" else pytest.mark.slow) for m in METHODS])
def test_with_adapters_and_gradient_checkpointing(method: str, tmp_path: Path) -> None:
    trainer, batch = moved(method, tmp_path, peft_config=lora_config(composed("model/lora=on").model))
    packed = trainer.scorer
    plain = update(trainer, batch, PaddedEngine(), 10**6)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    assert_same(update(trainer, batch, packed, 700), plain)


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "pact" else pytest.mark.slow) for m in METHODS])
def test_old_and_reference_log_probs_are_those_of_the_rows_contexts(method: str, tmp_path: Path) -> None:
    hipo = method == "hipo"
    options = (*METHODS[method], *(SMALL[:-1] if hipo else ()), *TWO_UPDATES, *KL)
    trainer = make_trainer((composed if hipo else small)(*options), tmp_path, reply if hipo else expert_script)
    calls: list[int] = []
    score = trainer.scorer.score
    trainer.scorer.score = lambda model, sequences, *rest: (
        calls.append(len(sequences)) or score(model, sequences, *rest)
    )
    batch = half_anchored(trainer)
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    with torch.no_grad():
        ratio = log_probs(trainer, batch, "context" if "context_ids" in batch else "prompt")
        prompt = log_probs(trainer, batch)
    assert torch.allclose(batch["old_per_token_logps"][mask], ratio[mask], atol=1e-4)
    assert torch.allclose(
        batch["ref_per_token_logps"][mask], (prompt if method == "pact_prompt" else ratio)[mask], atol=1e-4
    )
    rows = len(mask)
    conditioned = int(batch["conditioned"].sum()) if "conditioned" in batch else 0
    # Every row once for each policy; under both contexts only where the KL term is under x, or a teacher reads them.
    again = conditioned if method == "pact_prompt" else 0
    if isinstance(trainer.config.algo, SelfDistillation):
        again = rows * (len(trainer.config.algo.old_trees(Lengths(1, 1, 1, 1, 1))) - 1)
    assert sum(calls) == 2 * rows + again


def test_rows_of_a_prompt_score_alike_in_any_order(tmp_path: Path) -> None:
    trainer, batch = moved("grpo", tmp_path)
    sequences = list(rollouts_after(batch, "prompt").values())
    order = [3, 1, 6, 0, 7, 2, 5, 4]
    plain = trainer.scorer.score(trainer.model, sequences).logps
    for place, values in zip(
        order, trainer.scorer.score(trainer.model, [sequences[i] for i in order]).logps, strict=True
    ):
        torch.testing.assert_close(values, plain[place], rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("method", ["pact"])
def test_only_what_the_loss_reads_is_scored(method: str, tmp_path: Path) -> None:
    """No result of a tool, no token of a trace without a weight; a trace without any is not even computed."""
    trainer, batch = moved(method, tmp_path)
    trained = batch["completion_mask"] * batch["tool_mask"]
    assert trained.sum() < batch["completion_mask"].sum()  # there are results of tools
    wanted = trainer.wanted(batch)
    for row, sequence in wanted["rollouts"].items():
        prompt = int(batch["context_mask"][row].sum())
        assert [place - prompt for place in sequence.scored] == trained[row].nonzero().flatten().tolist()
    (row, sequence), *_ = wanted["traces"].items()
    trace = batch["trace"][row]
    weights = trainer.trace_weights(trace)
    assert len(sequence.scored) == int((weights > 0).sum()) < len(trace.ids)
    trainer.trace_weights = lambda trace: torch.zeros(len(trace.ids))
    assert trainer.wanted(batch)["traces"] == {}
    assert math.isfinite(trainer.compute_loss(trainer.model, batch).item())


def test_rows_of_which_nothing_is_trained_on_are_not_computed(tmp_path: Path) -> None:
    trainer, batch = moved("grpo", tmp_path)
    plain = update(trainer, batch, PaddedEngine(), 10**6)
    masked = {**batch, "tool_mask": batch["tool_mask"].clone()}
    masked["tool_mask"][2] = 0
    assert list(trainer.wanted(masked)["rollouts"]) == [0, 1, 3, 4, 5, 6, 7]
    one = update(trainer, masked, PaddedEngine(), 10**6)
    assert one[0] != pytest.approx(plain[0], rel=1e-6)
    assert_same(update(trainer, masked, PackedEngine(), 10**6), one)
    masked["tool_mask"][:] = 0
    assert update(trainer, masked, PackedEngine(), 10**6)[1].norm() == 0


def test_every_list_and_tensor_of_a_batch_has_an_entry_a_row() -> None:
    batch = {
        "ids": torch.arange(12).view(4, 3),
        "trace": ["a", None, "b", None],
        "tokens": torch.tensor(7),
        "old": None,
    }
    piece = piece_of(batch, range(1, 3), 4)
    assert piece["ids"].tolist() == [[3, 4, 5], [6, 7, 8]] and piece["trace"] == [None, "b"]
    assert piece["tokens"] == 7 and piece["old"] is None
    with pytest.raises(ValueError, match="columns of a rollout batch has 3 entries, but there are 4 rows"):
        piece_of({**batch, "columns": torch.zeros(3)}, range(1, 3), 4)
