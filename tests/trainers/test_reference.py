"""The reference of a KL term and of DPO is the policy as it starts, whatever it starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from agentrl.models.adapters import lora_config
from agentrl.models.loading import load_model
from agentrl.models.places import checkpoint_path
from agentrl.trainers.preferences import PairTrainer, pair_dataset
from tests.rollout.test_rollout import expert_script
from tests.runs.test_runs import killed_copy, lines, only_run, run
from tests.support.helpers import composed, dpo_arguments, log_probs, make_trainer, rolled_batch, small
from tests.trainers.test_hipo_trainer import SMALL, reply
from tests.trainers.test_kl import move

KL = ("algo.kl_coef=0.1", "algo.entropy_coef=0")
METHODS = {
    "grpo": ("algo=grpo", *KL),
    "pact": ("algo=pact", "algo.q=0", "algo.sft_coef=0", *KL),
    "pact_prompt": ("algo=pact", "algo.q=0", "algo.sft_coef=0", "algo.kl_context=prompt", *KL),
    "hipo": ("algo=hipo", *SMALL[:-1], *KL),
}


def fast_with(one: str, methods: Iterable[str]) -> list[Any]:
    """The methods as parameters of a test that is slow with all but one."""
    return [pytest.param(method, marks=() if method == one else pytest.mark.slow) for method in methods]


def make_adapter(base: str, folder: Path) -> Path:
    """An adapter of a packaged checkpoint that changes what it says."""
    torch.manual_seed(0)
    targets = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(composed().model.model_copy(update={"path": base})), targets).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint_path(base)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(f"builtin:{name}", folder / name) for name in ("tiny", "tiny_hif")}


def started(method: str, adapters: dict[str, Path], out: Path, **extra: Any) -> Any:
    """A trainer that starts from an adapter."""
    hif = method == "hipo"
    place = f"model.path={adapters['tiny_hif' if hif else 'tiny']}"
    keys = (*METHODS[method], "model=custom", "model.family=tiny", place)
    limits = ("rollout.max_prompt_tokens=1024", "rollout.max_completion_tokens=512", "rollout.max_turn_tokens=64")
    limits = (*limits, "trainer.learning_rate=1e-3")
    config = (composed if hif else small)(*keys, *limits)
    return make_trainer(config, out, reply if hif else expert_script, **extra)


def from_start(trainer: Any, context: str = "prompt") -> None:
    """KL is 0 at the start, and the reference is what the policy says, not what the bare base says."""
    batch = rolled_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(0, abs=1e-6)
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    with torch.no_grad():
        now = log_probs(trainer, batch, context)
    assert torch.allclose(now[mask], batch["ref_per_token_logps"][mask], atol=1e-4)
    untrained = "builtin:tiny" if trainer.tasks[0].tools else "builtin:tiny_hif"
    base = load_model(trainer.config.model.model_copy(update={"path": untrained}))
    policy, trainer.model = trainer.model, base
    with torch.no_grad():
        other = log_probs(trainer, batch, context)
    trainer.model = policy
    assert (now - other)[mask].abs().max() > 0.1


@pytest.mark.parametrize("method", fast_with("pact", METHODS))
def test_kl_starts_at_0_from_an_adapter(method: str, adapters: dict[str, Path], tmp_path: Path) -> None:
    from_start(started(method, adapters, tmp_path), "context" if method == "pact" else "prompt")


@pytest.mark.parametrize("method", fast_with("hipo", ["grpo", "pact", "hipo"]))
def test_kl_starts_at_0_where_adapters_are_trained_on_an_adapter(
    method: str, adapters: dict[str, Path], tmp_path: Path
) -> None:
    lora = lora_config(composed("model/lora=on").model)
    trainer = started(method, adapters, tmp_path, peft_config=lora)
    assert isinstance(trainer.model, PeftModel) and trainer.ref_model is None
    from_start(trainer, "context" if method == "pact" else "prompt")


def test_kl_starts_at_0_where_the_adapter_itself_is_trained_on(
    adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PEFT model handed to a trainer, as a script of one's own may do."""

    def attached(config: Any) -> Any:
        base = load_model(config.model_copy(update={"path": "builtin:tiny"}))
        return PeftModel.from_pretrained(base, str(adapters["tiny"]), is_trainable=True)

    monkeypatch.setattr("agentrl.models.loading.load_model", attached)
    trainer = started("pact", adapters, tmp_path)
    batch = rolled_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(0, abs=1e-6)
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad and ".ref." in name} == set()


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_measures_from_the_first_start(lora: bool, adapters: dict[str, Path], tmp_path: Path) -> None:
    def begin() -> Any:
        peft = lora_config(composed("model/lora=on").model) if lora else None
        return started("grpo", adapters, tmp_path / "out", peft_config=peft)

    first = begin()
    before = rolled_batch(first, prompts=1)["ref_per_token_logps"]
    with torch.no_grad():
        for parameter in (p for p in first.model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    first.save_model(str(tmp_path / "checkpoint-1"))
    resumed = begin()
    resumed._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    batch = rolled_batch(resumed, prompts=1)
    assert torch.allclose(batch["ref_per_token_logps"], before, atol=1e-6)
    resumed.compute_loss(resumed.model, batch)
    assert resumed._metrics["train"]["kl"][-1] > 1e-4


PAIRS = [
    {"prompt_ids": [20, 21, 22], "chosen_ids": [30, 31], "rejected_ids": [32]},
    {"prompt_ids": [23], "chosen_ids": [33], "rejected_ids": [34, 35, 36]},
]


def dpo(adapter: Path, out: Path, **extra: Any) -> tuple[Any, Callable[[], float]]:
    """A trainer of DPO from an adapter, and its loss on PAIRS."""
    arguments = dpo_arguments(out)
    start = composed().model.model_copy(update={"path": str(adapter)})
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    trainer = PairTrainer(
        model=load_model(start),
        args=arguments,
        train_dataset=pair_dataset(PAIRS, "b"),
        processing_class=tokenizer,
        settings=composed().trainer,
        **extra,
    )
    batch = trainer.data_collator(PAIRS)
    return trainer, lambda: trainer.compute_loss(trainer.model, dict(batch)).item()


@pytest.mark.parametrize("lora", [False, True])
def test_dpo_starts_at_log_2_from_an_adapter(lora: bool, adapters: dict[str, Path], tmp_path: Path) -> None:
    peft = lora_config(composed("model/lora=on").model) if lora else None
    trainer, loss = dpo(adapters["tiny"], tmp_path, peft_config=peft)
    assert loss() == pytest.approx(math.log(2), abs=1e-5)
    move(trainer, 0.02)
    assert loss() != pytest.approx(math.log(2), abs=1e-3)


def test_the_reference_is_frozen_and_the_policy_is_not(adapters: dict[str, Path], tmp_path: Path) -> None:
    trainer = started("grpo", adapters, tmp_path)
    assert not any(parameter.requires_grad for parameter in trainer.ref_model.parameters())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert trainer.ref_model is not trainer.model and not trainer.ref_model.training


@pytest.mark.slow
def test_a_run_from_an_adapter_and_its_resumption(adapters: dict[str, Path], tmp_path: Path) -> None:
    place = f"model.path={adapters['tiny']}"
    options = ("algo=grpo", "model=custom", "model.family=tiny", place, "algo.kl_coef=0.1", "trainer.save_steps=2")
    limits = ("rollout.max_prompt_tokens=1024", "rollout.max_completion_tokens=512", "rollout.max_turn_tokens=64")
    limits = (*limits, "trainer.learning_rate=1e-3")
    options = (*options, *limits)
    run(tmp_path / "whole", *options)
    folder = only_run(tmp_path / "whole")
    first, *later = lines(folder / "metrics.jsonl")
    assert abs(first["kl"]) < 1e-6 and later[-1]["kl"] > 1e-5
    killed = killed_copy(folder, tmp_path / "killed", "checkpoint-4")
    run(tmp_path / "killed", *options)
    assert (killed / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
