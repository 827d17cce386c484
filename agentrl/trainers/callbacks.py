"""What happens around an update: metrics to files and screen, checkpoints where a run can resume, clean stops."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agentrl.console import RunConsole
from agentrl.errors import UserError
from agentrl.run import RunDirectory

COMPLETE = "agentrl_complete.json"  # written last: a checkpoint without it is torn and never resumed from
RENAMED = {
    "loss": "loss/total",
    "learning_rate": "lr",
    "clip_ratio/region_mean": "clip_ratio",
    "rewards/_trajectory_return/std": "reward_std",
    "completions/mean_length": "completion/mean_tokens",
    "completions/max_length": "completion/max_tokens",
    "completions/clipped_ratio": "completion/truncated",
    "num_tokens": "tokens",
}
DROPPED = {
    *("step_time", "total_flos", "rewards/_trajectory_return/mean"),  # timings differ between equal runs
    *("tools/call_frequency", "tools/failure_frequency"),  # TRL's count misses failures that are observations
    *("completions/min_length", "completions/mean_terminated_length"),
    *("completions/min_terminated_length", "completions/max_terminated_length"),
}


class StopRequest:
    """Set by a signal handler, read between updates and between batches of an evaluation."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def anywhere(self) -> bool:
        """Whether any process was asked to stop; every process must ask at the same point, so that all agree."""
        state = PartialState()
        if state.num_processes == 1:
            return self.signal is not None
        flag = torch.tensor([float(self.signal is not None)], device=state.device)
        return bool(reduce(flag, reduction="sum").item())


class Record(TrainerCallback):
    """One line a step in metrics.jsonl (equal for equal runs) and in timing.jsonl (never equal)."""

    def __init__(self, run: RunDirectory, console: RunConsole) -> None:
        self._run, self._console = run, console
        self._tokens = 0.0
        self._at = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._at, self._tokens = time.perf_counter(), float(state.num_input_tokens_seen)
        self._console.start("train", state.max_steps, state.global_step)

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
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise UserError(
                    f"{name} is {logs[name]} at step {state.global_step}; lower trainer.learning_rate or "
                    "trainer.max_grad_norm (a new run: the weights of this one are lost from here on)"
                )
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
            for label, name in (("reward", "reward"), ("solve", "solve_rate"), ("loss", "loss/total"))
            if name in metrics
        ]
        self._console.update("train", state.global_step, "  ".join([*shown, f"{rate:,.0f} tok/s"]), line=True)


class Checkpoints(TrainerCallback):
    """Saves between rollout batches only, where TRL's buffer is empty and a resumed run continues bit for bit."""

    def __init__(self, save_steps: int, updates_per_rollout: int, stop: StopRequest) -> None:
        self._save_steps, self._cycle, self._stop = save_steps, updates_per_rollout, stop
        self._last = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        finished = step >= state.max_steps
        between_batches = step % self._cycle == 0 or finished
        due = self._save_steps > 0 and step // self._save_steps > self._last // self._save_steps
        stopping = self._stop.anywhere()
        if between_batches and (due or stopping or finished):
            control.should_save = True
            self._last = step
        if between_batches and stopping and not finished:
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / COMPLETE).write_text(json.dumps({"step": state.global_step}) + "\n")


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`, or None."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
