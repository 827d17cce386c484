"""GRPO with hints: a group that never succeeds is sampled again, with the first turns of its expert trace in view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentrl.chat.trace_messages import context_ids, context_messages
from agentrl.chat.trace_tokens import TokenizedTrace
from agentrl.core.bench import Task
from agentrl.core.engine import Episode
from agentrl.core.stop import any_process
from agentrl.core.trajectory import Trajectory
from agentrl.objectives.hints import groups_without_success, hint_turns
from agentrl.objectives.schedules import anneal_value, progress
from agentrl.trainers.traced import TracedTrainer


class HintGrpoTrainer(TracedTrainer):
    """GRPO whose groups without a success are sampled again under x and a hint. The ratio is under the same context.

    The hinted prompt is the prompt of the new rollouts, so every log-prob of the loss is under it. The reward is that
    of the plain task. A group keeps its first rollouts if its task has no trace or the hint is empty.
    """

    _hints: dict[int, int]  # by row of the rollout batch, the number of turns that its hint shows

    def trace_beside(self, row: int) -> TokenizedTrace | None:
        return None  # the loss has no term on the trace itself

    def whole_trace(self, task: Task) -> TokenizedTrace | None:
        return None

    def _play(self) -> list[Trajectory]:
        """Play the batch, then the groups without a success again."""
        played, group, share = super()._play(), self.num_generations, self._hint_share()
        failed = groups_without_success(self.solved(self._batch, played), group)
        again: dict[int, Task] = {}  # by row, the task with its hint
        self._hints = {}
        for first in failed:
            hinted, turns = self._add_hint(self._batch[first], share)
            if turns:
                rows = range(first, first + group)
                again |= dict.fromkeys(rows, hinted)
                self._hints |= dict.fromkeys(rows, turns)
        if any_process(bool(again)):  # a sampler of sharded weights needs all processes
            episodes = [Episode(hinted, self.bench.environment(self._batch[row])) for row, hinted in again.items()]
            for row, trajectory in zip(again, self.engine.rollout(episodes), strict=True):
                played[row] = trajectory
        self._log_hints(played, failed, share)
        return played

    def _add_hint(self, task: Task, share: float) -> tuple[Task, int]:
        """Return the task with its hint in the prompt, and the number of turns that the hint shows."""
        trace = self.expert_trace(task)
        if trace is None:
            return task, 0
        hint = replace(trace, turns=trace.turns[: hint_turns(len(trace.turns), share)])
        _, kept = context_ids(self.chat, task, hint, "message", self.config.algo.hint_tokens)
        if kept == 0:
            return task, 0
        hint = replace(hint, turns=hint.turns[:kept])
        return replace(task, prompt=context_messages(task, hint, "message", self.chat.reasoning)), kept

    def _hint_share(self) -> float:
        """Return the share of a trace's turns that hints show at the present update."""
        algo = self.config.algo
        done = progress(self.state.global_step, self.state.max_steps)
        return anneal_value("linear", algo.hint_start, algo.hint_end, done)

    def _log_hints(self, played: list[Trajectory], failed: list[int], share: float) -> None:
        """Log the share of groups that failed, of those sampled again, and how many of the latter then succeed."""
        metrics, firsts = self._metrics["train" if self.model.training else "eval"], sorted(self._hints)
        firsts = firsts[:: self.num_generations]
        rows = [row for first in firsts for row in range(first, first + self.num_generations)]
        solved = self.solved([self._batch[row] for row in rows], [played[row] for row in rows])
        still = groups_without_success(solved, self.num_generations)
        groups = len(played) // self.num_generations
        metrics["anneal/hint"].append(share)
        metrics["hint/failed"].append(self._global_mean(_marks(len(failed), groups)))
        again = self._global_mean(_marks(len(firsts), groups))
        metrics["hint/groups"].append(again)
        if again > 0:
            metrics["hint/solved"].append(self._global_mean(_marks(len(firsts) - len(still), len(firsts))))

    def _rollout_notes(self) -> list[dict[str, Any]]:
        """Note how many turns of the trace each rollout saw."""
        return [{"hint": self._hints.get(row, 0)} for row in range(len(self._batch))]


def _marks(some: int, of: int) -> list[float]:
    return [1.0] * some + [0.0] * (of - some)
