"""Schedules of PACT's L_SFT: the trace of a prompt fades with the updates, with its success, or with its own loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentrl.chat.trace_tokens import TokenizedTrace
from agentrl.core.bench import Task
from agentrl.objectives.pact import sft_token_weights
from agentrl.objectives.schedules import anneal_value, loss_progress, progress, reasoning_level, success_progress
from agentrl.scoring.sequence import Sequence
from agentrl.trainers.traced import TracedTrainer


@dataclass(frozen=True)
class FadingTrace(TokenizedTrace):
    """A trace, and the progress of its schedules in this rollout batch. None: the updates drive the schedule."""

    level_progress: float | None = None
    call_progress: float | None = None


class FadingTrainer(TracedTrainer):
    """A trainer whose weights of a trace's tokens change (eq. 9, 11). The method keeps the tokens of each trace."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._progress: dict[tuple[str, str], float] = {}  # of the present batch, by driver and task

    def shown_trace(self, task: Task) -> TokenizedTrace | None:
        """Return the tokens of a task's trace that L_SFT may use, or None."""
        raise NotImplementedError

    def _roll_out(self, prompts: list[Any], vllm: Any) -> dict[str, Any]:
        """Play the batch, then measure what drives the schedules of its prompts."""
        played = super()._roll_out(prompts, vllm)
        algo, tasks = self.config.algo, self._batch[:: self.num_generations]
        drivers = {algo.q_from, algo.schedule.level_from, algo.schedule.call_from}
        self._progress = {}
        if "success" in drivers:
            solved: dict[str, list[bool]] = {}
            for task, one in zip(self._batch, self.solved(self._batch, self._trajectories), strict=True):
                solved.setdefault(task.id, []).append(one)
            self._progress |= {("success", name): success_progress(ones) for name, ones in solved.items()}
        if "loss" in drivers:
            self._measure_losses({task.id: task for task in tasks})
        self._log_progress(tasks)
        return played

    def _measure_losses(self, tasks: dict[str, Task]) -> None:
        """Score the traces after their plain prompts: the loss of all tokens that L_SFT could train on."""
        found = {name: trace for name, task in tasks.items() if (trace := self.shown_trace(task)) is not None}
        sequences = {}
        for name, trace in found.items():
            places = _weights(trace, "fixed", "fixed", 4, 1.0, 1.0, 1.0).nonzero().flatten() + len(trace.prompt_ids)
            if len(places):
                sequences[name] = Sequence(trace.prompt_ids + trace.ids, places.tolist())
        scores = self.score_sequences(self.model, list(sequences.values()))
        for name, logps in zip(sequences, scores.logps, strict=True):
            self._progress["loss", name] = loss_progress(max(-logps.mean().item(), 0.0))

    def _log_progress(self, tasks: list[Task]) -> None:
        """Log the mean over prompts of each schedule that the updates do not drive."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        traces = [trace for task in tasks if (trace := self.fade(task)) is not None]
        values = [self._shown(*self._schedules(trace.level_progress, trace.call_progress)) for trace in traces]
        for name in self._shown(0, 0.0, 0.0):
            if self._driver(name) != "updates":  # a batch without a trace has no schedule: NaN is not logged
                metrics[name].append(self._global_mean([one[name] for one in values], empty=math.nan))

    def progress_of(self, driver: str, task: Task) -> float:
        """Return the progress of a task of the present batch by a driver other than the updates; 0 if unknown."""
        return self._progress.get((driver, task.id), 0.0)

    def fade(self, task: Task) -> FadingTrace | None:
        """Return a task's trace with the progress of its schedules."""
        trace, schedule = self.shown_trace(task), self.config.algo.schedule
        if trace is None:
            return None
        level, call = (
            None if driver == "updates" else self.progress_of(driver, task)
            for driver in (schedule.level_from, schedule.call_from)
        )
        return FadingTrace(**vars(trace), level_progress=level, call_progress=call)

    def _schedules(self, level: float | None, call: float | None) -> tuple[int, float, float]:
        """Return the level of reasoning, the kept share of what is cut by tokens, and the weight of calls.

        `level` and `call` are the progress of their schedules; None means that the updates drive it.
        """
        anneal = self.config.anneal
        made = progress(self.state.global_step, self.state.max_steps, anneal.horizon)
        level, call = (made if one is None else one for one in (level, call))
        return (
            reasoning_level(level, self.config.algo.schedule.switch_points),
            anneal_value(anneal.kind, 1.0, 0.0, level, anneal.num_steps),
            anneal_value(anneal.kind, anneal.start, anneal.end, call, anneal.num_steps),
        )

    def _shown(self, level: int, kept: float, scale: float) -> dict[str, float]:
        """Return the values that weights depend on under the chosen schedules, by the names of their metrics."""
        schedule, start = self.config.algo.schedule, self.config.anneal.start
        found = {"anneal/level": float(level)} if schedule.reasoning == "segment" else {}
        if schedule.reasoning in ("token", "full_token"):
            found["anneal/kept"] = kept
        if schedule.reasoning != "full_token":  # which fades calls with the reasoning
            found["anneal/call_scale"] = {"fixed": start, "none": 0.0}.get(schedule.call, scale)
        return found

    def _driver(self, name: str) -> str:
        schedule = self.config.algo.schedule
        return str(schedule.call_from if name == "anneal/call_scale" else schedule.level_from)

    def trace_weights(self, trace: TokenizedTrace) -> Tensor:
        """Return the weights m_n(s) of eq. 9 at the current update."""
        assert isinstance(trace, FadingTrace)
        schedule = self.config.algo.schedule
        level, kept, scale = self._schedules(trace.level_progress, trace.call_progress)
        return _weights(trace, schedule.reasoning, schedule.call, level, kept, scale, self.config.anneal.start)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the present values of the schedules that the updates drive to TRL's log line."""
        if self.model.training:
            anneal, metrics = self.config.anneal, self._metrics["train"]
            made = progress(max(self.state.global_step - 1, 0), self.state.max_steps, anneal.horizon)
            for name, value in self._shown(*self._schedules(made, made)).items():
                if self._driver(name) == "updates":
                    metrics[name].append(value)
        super().log(logs, start_time)


def _weights(
    trace: TokenizedTrace, reasoning: Any, call: Any, level: int, kept: float, scale: float, start: float
) -> Tensor:
    return sft_token_weights(
        torch.tensor(trace.component),
        torch.tensor(trace.turn),
        torch.tensor(trace.chunk),
        reasoning=reasoning,
        call=call,
        level=level,
        kept=kept,
        call_scale=scale,
        call_start=start,
    )
