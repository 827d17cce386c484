"""Shared by the tests: composing configurations, and trainers whose sampler follows a script."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agentrl.config.benches import BENCHES, Suite
from agentrl.config.help import GROUPS
from agentrl.config.load import typed_config
from agentrl.config.schema import Config
from agentrl.config.side_benches import SideKeys

CONF = Path(__file__).resolve().parents[2] / "conf"
SUITES = [name for name, cls in BENCHES.items() if issubclass(cls, Suite)]  # of instruction hierarchies
SIDE = [name for name, cls in BENCHES.items() if issubclass(cls, SideKeys)]  # they only evaluate


def composed(*overrides: str) -> Config:
    """The typed configuration of a command line.

    Hydra composes each choice of groups once, which takes it a third of a second; keys are set on a copy.
    """
    groups = tuple(override for override in overrides if override.split("=")[0] in (*GROUPS, "experiment", "preset"))
    raw = deepcopy(_composed_groups(groups))  # in half the time of making one from plain values
    for override in overrides:
        if override not in groups:
            key, value = override.lstrip("+").split("=", 1)
            OmegaConf.update(raw, key, OmegaConf.to_container(OmegaConf.create(f"value: {value}"))["value"])
    return typed_config(raw)


@cache
def _composed_groups(groups: tuple[str, ...]) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.create(OmegaConf.to_container(compose("config", overrides=list(groups))))


def changed(group: Any, **values: Any) -> Any:
    """A copy of a group of keys with other values, which are not checked."""
    return group.model_copy(update=values)


def small(*overrides: str) -> Config:
    """The laptop default cut down to 2 prompts of 4 rollouts, without a reference model or an entropy term."""
    return composed(
        "trainer.prompts_per_batch=2",
        "trainer.minibatch_prompts=2",
        "trainer.max_steps=4",
        "rollout.num_generations=4",
        "bench.train_tasks=12",
        "bench.test_tasks=4",
        *overrides,
    )


def make_trainer(config: Config, out: Path, script: Any = None, **extra: Any) -> Any:
    """The RL trainer of `config` on the packaged tokenizer and a freshly initialised tiny network.

    `script(task, sample, turn) -> str` replaces sampling where given: the text of the turn, end token excluded.
    `extra` goes to the trainer.
    """
    import torch

    from agentrl.benches import load_bench
    from agentrl.models.loading import load_chat, load_model, needs_of
    from agentrl.trainers.arguments import grpo_arguments
    from agentrl.trainers.build import rl_trainer

    torch.manual_seed(0)
    bench = load_bench(config.bench)
    tasks = bench.tasks("train")
    chat = load_chat(config.model, needs_of(tasks))
    trainer_class = rl_trainer(config.algo)
    assert trainer_class is not None
    trainer = trainer_class(
        **extra,
        model=load_model(config.model),
        chat=chat,
        args=grpo_arguments(config, out),
        config=config,
        bench=bench,
        tasks=tasks,
    )
    trainer.state.max_steps = config.trainer.max_steps
    if script is not None:
        follow_script(trainer, script)
    return trainer


class Scripted:
    """A sampler whose turns are made up: `say(request, turn)` gives the ids of an episode's turn, counted from 0."""

    def __init__(self, like: Any, say: Any) -> None:
        self.ends, self.context, self._say = like.ends, like.context, say
        self._turns: dict[int, int] = {}

    @contextmanager
    def session(self, decoding: Any) -> Any:
        self._turns.clear()
        yield self

    def sample(self, requests: Any, ready: Any = None) -> Any:
        from agentrl.rollout.sampler import cut_turn

        turns = {}
        for request in requests:
            turn = self._turns[request.episode] = self._turns.get(request.episode, -1) + 1
            turns[request.episode] = cut_turn(request, self._say(request, turn), None, self.ends, self.context)
        return turns


def say(trainer: Any, speak: Any) -> None:
    """Replace the trainer's sampler by one that says `speak(request, turn)`."""
    trainer.engine.sampler = Scripted(trainer.engine.sampler, speak)


def follow_script(trainer: Any, script: Any) -> None:
    """Every turn of every row is the script's text, tokenised, with the end token."""
    tokenizer = trainer.processing_class

    def speak(request: Any, turn: int) -> list[int]:
        row = request.episode
        text = script(trainer._batch[row], row % trainer.num_generations, turn)
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    say(trainer, speak)


def rolled_batch(trainer: Any, prompts: int = 2) -> Any:
    """The tensors of one batch, rolled out and rewarded: `prompts` tasks, a group each."""
    group = trainer.num_generations
    rows = [{"task": i, "prompt": trainer.tasks[i].prompt} for i in range(prompts) for _ in range(group)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(rows)


def rolled_with_trl_advantages(trainer: Any) -> tuple[Any, Any]:
    """`rolled_batch` of the trainer, and the advantages (rows,) that TRL computes before ours take their place."""
    from trl import GRPOTrainer

    theirs, original = [], GRPOTrainer._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> Any:
        out = original(self, inputs)
        theirs.append(out["advantages"].clone())
        return out

    with patch.object(GRPOTrainer, "_generate_and_score_completions", spy):
        batch = rolled_batch(trainer)
    return batch, theirs[0]


def work_in_this_process(monkeypatch: Any) -> None:
    """Commands do a worker's work here, without a child process, whose imports take longer than a small evaluation."""
    from agentrl.runner import start, worker
    from agentrl.store.run import LOCK_HELD

    monkeypatch.setattr(worker, "_catch_signals", lambda stop: None)
    monkeypatch.setattr(worker, "die_with_launcher", lambda: None)

    def launch(run: Any, *_: Any, **__: Any) -> int:
        monkeypatch.setenv(LOCK_HELD, str(run.path))  # as a child process has it
        return worker.main(run.path)

    monkeypatch.setattr(start, "launch", launch)


def gradient(trainer: Any, loss: Any) -> Any:
    """The gradient of `loss` over all parameters, flat."""
    import torch

    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def log_probs(trainer: Any, batch: Any, prefix: str = "prompt") -> Any:
    """Log-probs (B, C) of the sampled tokens from the model's full logits, positions counted without the padding."""
    import torch

    ids = torch.cat([batch[f"{prefix}_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch[f"{prefix}_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
    chosen = torch.log_softmax(logits / trainer.temperature, -1).gather(2, ids[:, 1:, None])[..., 0]
    return chosen[:, -batch["completion_ids"].shape[1] :]


def trl_loss(trainer: Any, inputs: Any) -> Any:
    """TRL's own loss of a micro-batch, with the settings that `trainer` has for ours."""
    from trl import GRPOTrainer

    settings = trainer.policy_settings()
    assert settings.level != "sequence", "TRL has no product of a row's ratios"
    trainer.importance_sampling_level = settings.level.removesuffix("_mean")
    trainer.loss_type = {"sequence": "grpo", "token": "dapo"}[settings.aggregation]
    trainer.epsilon_low = trainer.epsilon_high = settings.clip_eps
    trainer.beta, trainer.args.use_bias_correction_kl = settings.kl_coef, settings.kl_ratio_correction
    trainer.entropy_coef, trainer._entropy_bonus_enabled = settings.entropy_coef, settings.entropy_coef != 0
    scoring = "_get_per_token_logps_and_entropies"  # ours has no graph: the loss calls the engine
    own = vars(trainer).get(scoring)
    setattr(trainer, scoring, own or MethodType(getattr(GRPOTrainer, scoring), trainer))
    try:
        return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    finally:
        if own is None:
            delattr(trainer, scoring)


def dpo_arguments(out: Path) -> Any:
    """Settings of TRL's DPO for a direct look at its loss: beta 0.3, two pairs a batch, nothing saved or reported."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(out),
        beta=0.3,
        max_length=None,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=2,
        save_strategy="no",
        disable_tqdm=True,
    )
