"""Combinations of values that cannot work are refused here, before anything is loaded, with what to change.

`validate` raises UserError for what is impossible and returns sentences about what is merely unwise.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentrl.config.algos import ROLLOUT_FREE, TRACED, Evaluate, Hipo, Pact, Sft
from agentrl.config.benches import Ftrl, HifConfig, Minihop, ToolHop
from agentrl.config.checks import require
from agentrl.config.load import suggest
from agentrl.config.schema import Anneal, Config, Hardware, Rollout, Tracker, Trainer
from agentrl.config.validate_algo import ALGO_CHOICES, validate_algo
from agentrl.config.validate_bench import BENCH_CHOICES, validate_bench
from agentrl.config.validate_hardware import HARDWARE_CHOICES, validate_hardware
from agentrl.config.validate_judge import JUDGE_CHOICES, validate_judge
from agentrl.core.errors import UserError
from agentrl.core.install import install_line

CHOICES: dict[str, tuple[str, ...]] = {
    **ALGO_CHOICES,
    **BENCH_CHOICES,
    **JUDGE_CHOICES,
    **HARDWARE_CHOICES,
    "model.family": ("tiny", "qwen2.5", "qwen3", "phi3", "phi4", "llama3", "other"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "model.attn_implementation": ("sdpa", "eager", "flash_attention_2"),
    "model.reasoning": ("content", "think"),
    "model.thinking": ("on", "off"),
    "rollout.engine": ("trl",),
    "reward.name": ("matching", "ot", "ftrl", "toolrl", "answer"),
    "reward.matching": ("hungarian", "greedy"),
    "reward.ftrl_variant": ("f1", "pr", "rate", "precision"),
    "reward.toolrl.schedule": ("none", "smooth", "two_stage"),
    "anneal.kind": ("linear", "constant", "cosine", "steps"),
    "trainer.tasks": ("all", "with_trace"),
    "trainer.lr_schedule": ("constant", "linear", "cosine"),
    "faults.nonfinite": ("stop", "skip"),
    "faults.no_signal": ("warn", "stop"),
    "faults.dead_tools": ("stop", "continue"),
    "sandbox": ("auto", "strict"),
    "tracker.name": ("none", "wandb", "wandb_offline", "trackio", "tensorboard"),
}


def validate(config: Config) -> list[str]:
    """Raise UserError for the first impossible value or combination; return warnings."""
    _choices(config)
    _run(config)
    _rollout(config.rollout)
    _reward(config)
    _anneal(config.anneal)
    _trainer(config.trainer, config.hardware)
    _eval(config)
    validate_algo(config)
    warnings = validate_bench(config)
    validate_judge(config)
    validate_hardware(config)
    _tracker(config.tracker)
    _batches(config)
    return [*warnings, *_machine(config)]


def group_size(config: Config) -> int:
    """Sequences per prompt in one update: K, or 1 where there are no rollouts."""
    return 1 if isinstance(config.algo, ROLLOUT_FREE) else config.rollout.num_generations


def _choices(config: Config) -> None:
    for key, allowed in CHOICES.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)  # a variant of algo or bench lacks the other variants' keys
        if value is not None and value not in allowed:
            raise UserError(f"{key}={value} is not a choice{suggest(value, list(allowed))}")


def _run(config: Config) -> None:
    for key in ("name", "run_id"):
        value = getattr(config, key)
        if value is not None:
            plain = value not in ("", ".", "..") and not set(value) & set("/\\\0\n")
            require(plain, key, repr(value), "must be a plain directory name, without '/'")
    require(config.runs_dir != "", "runs_dir", "''", "must name a directory")
    found = config.traces is None or Path(config.traces).expanduser().is_file()
    require(found, "traces", config.traces, "no such file; make it with agentrl traces build, or set null")
    require(0 <= config.seed < 2**32, "seed", config.seed, "must lie between 0 and 4294967295 (numpy's range)")
    lora = config.model.lora
    require(lora.r >= 1, "model.lora.r", lora.r, "must be at least 1")
    require(lora.alpha >= 1, "model.lora.alpha", lora.alpha, "must be at least 1")
    require(0 <= lora.dropout < 1, "model.lora.dropout", lora.dropout, "must lie in [0, 1)")
    targets = lora.target_modules
    named = isinstance(targets, list) and targets != [] and all(isinstance(name, str) for name in targets)
    target_rule = "must be a list of module names such as [q_proj,v_proj], all-linear, or null"
    require(targets in (None, "all-linear") or named, "model.lora.target_modules", targets, target_rule)


def _rollout(rollout: Rollout) -> None:
    temperature_rule = "rollouts must be sampled: greedy copies have no advantage; set above 0 (the paper: 1)"
    require(0 < rollout.temperature < math.inf, "rollout.temperature", rollout.temperature, temperature_rule)
    require(0 < rollout.top_p <= 1, "rollout.top_p", rollout.top_p, "must lie in (0, 1]")
    for key in ("max_turns", "max_prompt_tokens", "max_completion_tokens"):
        require(getattr(rollout, key) >= 1, f"rollout.{key}", getattr(rollout, key), "must be at least 1")
    turn, budget = rollout.max_turn_tokens, rollout.max_completion_tokens
    turn_rule = f"must lie between 1 and rollout.max_completion_tokens={budget}, or be null"
    require(turn is None or 1 <= turn <= budget, "rollout.max_turn_tokens", turn, turn_rule)


def _reward(config: Config) -> None:
    reward, bench = config.reward, config.bench
    golds_rule = f"bench={bench.name} has no sub-answers by tool; set reward=answer, or bench=ftrl, toolhop or minihop"
    known = isinstance(bench, Minihop | ToolHop | Ftrl)
    require(reward.name != "ftrl" or isinstance(config.algo, Sft) or known, "reward", reward.name, golds_rule)
    penalty = reward.unmatched_penalty
    require(0 <= penalty < math.inf, "reward.unmatched_penalty", penalty, "must be 0 or more")
    require(0 < reward.ot_reg < math.inf, "reward.ot_reg", reward.ot_reg, "must be above 0 (MatchTIR: 0.1)")


def _anneal(anneal: Anneal) -> None:
    for key in ("start", "end"):
        require(0 <= getattr(anneal, key) <= 1, f"anneal.{key}", getattr(anneal, key), "must lie in [0, 1]")
    start_rule = f"must be at least anneal.end={anneal.end}: the tool-call scale only falls; swap the two"
    require(anneal.start >= anneal.end, "anneal.start", anneal.start, start_rule)
    require(0 < anneal.horizon <= 1, "anneal.horizon", anneal.horizon, "must lie in (0, 1]; 1 is the whole run")
    require(anneal.kind != "steps" or anneal.num_steps >= 2, "anneal.num_steps", anneal.num_steps, "must be 2 or more")


def _trainer(trainer: Trainer, hardware: Hardware) -> None:
    for key in ("prompts_per_batch", "minibatch_prompts", "micro_batch", "keep_checkpoints"):
        require(getattr(trainer, key) >= 1, f"trainer.{key}", getattr(trainer, key), "must be at least 1")
    for key in ("warmup_steps", "save_steps", "log_rollouts"):
        require(getattr(trainer, key) >= 0, f"trainer.{key}", getattr(trainer, key), "must be 0 or more")
    for key in ("learning_rate", "max_grad_norm"):
        require(0 < getattr(trainer, key) < math.inf, f"trainer.{key}", getattr(trainer, key), "must be above 0")
    require(0 <= trainer.weight_decay < math.inf, "trainer.weight_decay", trainer.weight_decay, "must be 0 or more")
    steps = trainer.max_steps
    require(steps == -1 or steps >= 1, "trainer.max_steps", steps, "must be 1 or more, or -1 to let epochs decide")
    epochs_ok = steps != -1 or 0 < trainer.epochs < math.inf
    require(epochs_ok, "trainer.epochs", trainer.epochs, "must be above 0 when trainer.max_steps is -1")
    require(hardware.processes >= 1, "hardware.processes", hardware.processes, "must be at least 1")
    threads_ok = hardware.threads is None or hardware.threads >= 1
    require(threads_ok, "hardware.threads", hardware.threads, "must be at least 1, or null for all cores")


def _eval(config: Config) -> None:
    require(config.faults.patience >= 1, "faults.patience", config.faults.patience, "must be at least 1")
    limit = config.eval.limit
    require(limit is None or limit >= 1, "eval.limit", limit, "must be at least 1, or null for all tasks")
    for key in ("samples", "batch"):
        require(getattr(config.eval, key) >= 1, f"eval.{key}", getattr(config.eval, key), "must be at least 1")
    require(0 <= config.eval.temperature < math.inf, "eval.temperature", config.eval.temperature, "must be 0 or more")
    require(0 < config.eval.top_p <= 1, "eval.top_p", config.eval.top_p, "must lie in (0, 1]")


def _batches(config: Config) -> None:
    """Whole groups on every process, whole minibatches in a rollout batch, whole micro-batches in a minibatch."""
    trainer, processes, k = config.trainer, config.hardware.processes, group_size(config)
    prompts, mini, micro = trainer.prompts_per_batch, trainer.minibatch_prompts, trainer.micro_batch
    mini_rule = f"must divide trainer.prompts_per_batch={prompts}; nearest is {_divisor(prompts, mini)}"
    require(prompts % mini == 0, "trainer.minibatch_prompts", mini, mini_rule)
    spread = f"must be a multiple of hardware.processes={processes}, so that each process holds whole groups"
    require(prompts % processes == 0, "trainer.prompts_per_batch", prompts, spread)
    sequences = mini * k
    per_process = sequences // processes
    micro = min(micro, max(1, per_process))  # room for more than an update holds is no mistake
    require(
        sequences % (micro * processes) == 0,
        "trainer.micro_batch",
        micro,
        f"an update has {sequences} sequences (minibatch_prompts={mini} x {k}) on {processes} process(es), which "
        + (
            f"{micro} does not divide; nearest is {_divisor(per_process, micro)}"
            if per_process * processes == sequences
            else f"does not split evenly; make trainer.minibatch_prompts a multiple of {processes}"
        ),
    )


def _divisor(number: int, near: int) -> int:
    """The divisor of `number` closest to `near`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))


def _tracker(tracker: Tracker) -> None:
    if tracker.name in ("trackio", "tensorboard") and find_spec(tracker.name) is None:
        raise UserError(
            f"tracker={tracker.name}: the package is not installed; {install_line(tracker.name)}, or tracker=none"
        )


def _machine(config: Config) -> list[str]:
    hardware, model, warnings = config.hardware, config.model, []
    imitates = isinstance(config.algo, TRACED) and not (isinstance(config.algo, Pact) and config.algo.sft_coef == 0)
    if imitates and config.rollout.temperature != 1:
        warnings.append(
            f"rollout.temperature={config.rollout.temperature:g}: TRL divides all logits by it, those of the expert's "
            "tokens too; 1 is the paper's"
        )
    if isinstance(config.algo, Hipo) and isinstance(config.bench, HifConfig) and config.judge.name == "program":
        warnings.append(
            "judge=program: no program knows whether the user was served, so where the suite leaves r_user open it is "
            "the share of the request's words that a reply takes up; judge=openai, local or distilled read the reply"
        )
    if hardware.device == "cpu":
        flash = model.attn_implementation != "flash_attention_2"
        flash_rule = "needs a GPU; set model.attn_implementation=sdpa, or hardware=gpu"
        require(flash, "model.attn_implementation", model.attn_implementation, flash_rule)
        require(model.dtype != "float16", "model.dtype", model.dtype, "has no CPU kernels; set model.dtype=float32")
        if hardware.bf16:
            warnings.append("hardware.bf16=true on a CPU is several times slower than float32 unless it has AMX")
    if model.dtype != "float32" and not model.lora.enabled and config.trainer.learning_rate < 1e-5:
        warnings.append(
            f"model.dtype={model.dtype}: updates of size {config.trainer.learning_rate:g} are lost to rounding; "
            "keep model.dtype=float32 (hardware.bf16 still computes in bfloat16), or train adapters (model/lora=on)"
        )
    elsewhere = isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None
    folder = Path(model.path).expanduser()
    local = model.path.startswith(("/", "./", "../", "~")) or folder.exists() or model.path.count("/") > 1
    if local and not elsewhere:
        require(not folder.is_file(), "model.path", model.path, "is a file; name the directory that holds config.json")
        checkpoint = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
        path_rule = (
            "no checkpoint there (config.json is missing); give a directory made by save_pretrained, or a hub id"
        )
        require(checkpoint, "model.path", model.path, path_rule)
    return warnings
