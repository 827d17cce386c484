"""Callbacks around an update: write metrics to files and the screen, save checkpoints, stop a run cleanly."""

from __future__ import annotations

import time
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agentrl.config.schema import Trainer as TrainerConfig
from agentrl.core.console import RunConsole
from agentrl.core.errors import UserError
from agentrl.core.stop import StopRequest
from agentrl.store import checkpoints
from agentrl.store.run import RunDirectory

RENAMED = {
    "loss": "loss/total",
    "learning_rate": "lr",
    "clip_ratio/region_mean": "clip_ratio",
    "rewards/_trajectory_return/std": "reward_std",
    "completions/mean_length": "completion/mean_tokens",
    "completions/max_length": "completion/max_tokens",
    "num_tokens": "tokens",
}
DROPPED = {
    *("step_time", "total_flos", "rewards/_trajectory_return/mean"),  # timings differ between equal runs
    *("tools/call_frequency", "tools/failure_frequency"),  # TRL's count misses failures that are observations
    "completions/clipped_ratio",  # misses episodes that the budget cut at a tool result: see completion/truncated
    *("completions/min_length", "completions/mean_terminated_length"),
    # TRL compares with log-probs over all tokens, whatever top_p: see sampler/kl and sampler/ratio_*
    *(f"sampling/sampling_logp_difference/{kind}" for kind in ("mean", "max")),
    *(f"sampling/importance_sampling_ratio/{kind}" for kind in ("min", "mean", "max")),
    *("completions/min_terminated_length", "completions/max_terminated_length"),
}


class Record(TrainerCallback):
    """Writes a line per step to metrics.jsonl and to timing.jsonl. Equal runs have equal metrics, but other timings."""

    def __init__(self, run: RunDirectory, console: RunConsole) -> None:
        self._run, self._console = run, console
        self._tokens = 0.0
        self._at = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._at, self._tokens = time.perf_counter(), float(state.num_input_tokens_seen)
        self._console.start("train", state.max_steps, state.global_step)
        if state.is_world_process_zero:
            self._run.note(max_steps=state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "train_runtime" in logs:
            return
        if not state.is_world_process_zero:
            return
        metrics = {RENAMED.get(name, name): value for name, value in logs.items() if name not in DROPPED}
        self._run.append(self._run.metrics_path, {"step": state.global_step, **dict(sorted(metrics.items()))})
        now = time.perf_counter()
        tokens = metrics.get("tokens", self._tokens)
        rate = (tokens - self._tokens) / (now - self._at)
        timing = {"step": state.global_step, "seconds": round(now - self._at, 3), "tokens_per_s": round(rate, 1)}
        self._run.append(self._run.timing_path, timing)
        self._at, self._tokens = now, tokens
        shown = [
            f"{label} {metrics[name]:.3f}"
            for label, name in (
                ("reward", "reward"),
                ("solve", "solve_rate"),
                ("r_sys", "r_sys"),
                ("lambda", "lambda/sys"),
                ("loss", "loss/total"),
            )
            if name in metrics
        ]
        self._console.update("train", state.global_step, "  ".join([*shown, f"{rate:,.0f} tok/s"]), line=True)


class Checkpoints(TrainerCallback):
    """Saves checkpoints, and stops the run if a stop is requested, only between rollout batches.

    There TRL's buffer is empty, so a resumed run continues bit for bit.
    """

    def __init__(self, run: RunDirectory, config: TrainerConfig, updates_per_rollout: int, stop: StopRequest) -> None:
        self._folder, self._config = run.checkpoints_dir, config
        self._cycle, self._stop = updates_per_rollout, stop
        self._last = self._began = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = self._began = state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuse an unknown trainer.keep_best after the first update, not at the first checkpoint."""
        best = self._config.keep_best
        if best is not None and state.is_world_process_zero and state.global_step == self._began + 1:
            self._value(state, best.removeprefix("-"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, every = state.global_step, self._config.save_steps
        finished = step >= state.max_steps
        between_batches = step % self._cycle == 0 or finished
        due = every > 0 and step // every > self._last // every
        stopping = self._stop.is_requested()
        if between_batches and (due or stopping or finished):
            control.should_save = True
        if between_batches and stopping and not finished:
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Wait until every process has written its part. Then the main process seals the checkpoint."""
        processes, best = PartialState(), self._config.keep_best
        processes.wait_for_everyone()
        if state.is_world_process_zero:
            value = self._value(state, best.removeprefix("-")) if best is not None else {}
            checkpoints.seal(self._folder, state.global_step, value)
            checkpoints.prune(self._folder, self._config.keep_checkpoints, best)
        processes.wait_for_everyone()
        self._last = state.global_step

    def _value(self, state: TrainerState, name: str) -> dict[str, float]:
        """Return the metric's mean over the updates since the last checkpoint, since one rollout batch is noisy.

        Raises UserError if metrics.jsonl has no such metric.
        """
        logs = [entry for entry in state.log_history if entry["step"] > self._last]
        renamed = [{RENAMED.get(key, key): value for key, value in entry.items()} for entry in logs]
        values = [entry[name] for entry in renamed if name in entry]
        if not values:
            known = ", ".join(sorted({key for entry in renamed for key in entry} - DROPPED - {"step", "epoch"}))
            raise UserError(f"trainer.keep_best={name}: metrics.jsonl has no such value; choose from {known}")
        return {name: sum(values) / len(values)}
