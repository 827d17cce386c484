"""trainer.diagnose: the terms' gradients are those of the trainer's own losses, and training is as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.config.rules import validate
from agentrl.core.errors import UserError
from agentrl.trainers.diagnosis import MEASURES
from tests.support.helpers import composed, gradient, make_trainer, rolled_batch, small
from tests.support.methods import IMITATING, PACKAGED

KEYS = ("algo.advantage.kind=trajectory", "algo.kl_coef=0", "algo.entropy_coef=0")


def script(task: Any, sample: int, turn: int) -> str:
    """Two rollouts of four answer right, so that advantages are not 0."""
    return f"<answer>{task.answer if sample % 2 else 'Nobody'}</answer>"


def measured(out: Path, *overrides: str) -> tuple[Any, dict[str, Any], dict[str, float]]:
    trainer = make_trainer(small("trainer.diagnose=1", *KEYS, *overrides), out, script)
    batch = rolled_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    found = {name: trainer._metrics["train"][f"diagnose/{name}"] for name in MEASURES}
    return trainer, batch, {name: values[-1] for name, values in found.items() if values}


@pytest.mark.parametrize(
    ("arm", "term"),
    [
        (("algo.q=1", "algo.sft_coef=0"), "x"),
        (("algo.q=0", "algo.sft_coef=0"), "h"),
        (("algo.q=0", "algo.rl_coef=0", "algo.sft_coef=1"), "sft"),
    ],
)
@pytest.mark.parametrize("budget", [4000, 200])
def test_the_norms_are_those_of_the_losses_of_the_arms(arm: tuple[str, ...], term: str, budget: int, tmp_path: Path):
    trainer, batch, found = measured(tmp_path, f"trainer.tokens_per_batch={budget}", *arm)
    whole = {**batch, "rows_of_update": len(batch["completion_ids"])}
    loss = trainer.piece_loss(trainer.model, whole)
    norm = gradient(trainer, loss).double().norm().item()
    assert norm > 0
    assert found[f"norm_{term}"] == pytest.approx(norm, rel=1e-4)


def test_everything_is_measured_whatever_the_gate_says(tmp_path: Path) -> None:
    for q in (0, 1):
        found = measured(tmp_path / str(q), f"algo.q={q}")[2]
        assert set(found) == set(MEASURES)
        assert -1 <= found["cos_x_h"] <= 1


@pytest.mark.parametrize("algo", IMITATING)
def test_other_methods_with_traces_are_measured_too(algo: str, tmp_path: Path) -> None:
    keys = [key for key in KEYS if "advantage" in PACKAGED[algo].model_fields or "advantage" not in key]
    trainer = make_trainer(small(f"algo={algo}", "trainer.diagnose=1", *keys), tmp_path, script)
    trainer.compute_loss(trainer.model, rolled_batch(trainer))
    assert trainer._metrics["train"]["diagnose/norm_h"][-1] > 0
    assert trainer._metrics["train"]["diagnose/norm_sft"][-1] > 0


def test_a_run_with_diagnosis_trains_as_one_without(tmp_path: Path) -> None:
    found = []
    for every in (0, 2):
        trainer = make_trainer(small(f"trainer.diagnose={every}"), tmp_path / str(every), script)
        trainer.train()
        weights = torch.cat([one.detach().flatten() for one in trainer.model.parameters()])
        found.append((weights, [row for row in trainer.state.log_history if "diagnose/norm_x" in row]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == []
    assert [row["step"] for row in found[1][1]] == [1, 3]


def test_methods_without_traces_and_sharded_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.diagnose=1: algo=grpo reads no expert traces"):
        validate(composed("algo=grpo", "trainer.diagnose=1"))
    (tmp_path / "a.yaml").write_text("distributed_type: 'NO'\n")
    with pytest.raises(UserError, match=r"trainer\.diagnose=1: needs whole weights"):
        validate(composed(f"hardware.accelerate_config={tmp_path}/a.yaml", "trainer.diagnose=1"))
