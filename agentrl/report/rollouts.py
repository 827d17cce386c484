"""Prepare rollouts for reading: join tokens that share turn, component and advantage, and choose rollouts to show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from agentrl.core.trajectory import Component


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens that are equal in everything a reader looks at."""

    text: str
    component: str  # name of a Component in lower case
    turn: int
    trained: bool  # sampled by the policy, so the policy loss covers it; other tokens are context
    advantage: float


@dataclass(frozen=True)
class TraceStretch:
    """Consecutive tokens of an expert trace with the same component and weight in L_SFT."""

    text: str
    component: str
    weight: float


@dataclass(frozen=True)
class View:
    """One line of rollouts.jsonl, ready to be shown."""

    step: int
    task: str
    prompt: str
    stretches: tuple[Stretch, ...]
    rewards: tuple[float, ...]  # one for each turn, or one for the reply
    metrics: dict[str, float]
    errors: int
    truncated: bool
    # PACT: the clipped loss that trained on it, L^x (prompt alone) or L^h (prompt and trace)
    surrogate: str | None = None
    trace: tuple[TraceStretch, ...] = ()  # PACT: its expert trace h*, with the weights of the SFT term

    @property
    def reward(self) -> float:
        return sum(self.rewards)

    def turn_advantages(self) -> dict[int, float]:
        """Return the advantage of the policy's tokens in each turn (all tokens of a turn share it)."""
        return {stretch.turn: stretch.advantage for stretch in self.stretches if stretch.trained}


def view(record: dict[str, Any]) -> View:
    """Turn a line of rollouts.jsonl into a `View`."""
    return View(
        step=record["step"],
        task=record["task_id"],
        prompt=record["prompt"],
        stretches=tuple(stretches(record)),
        rewards=tuple(record["rewards"]),
        metrics={name: value for name, value in record["metrics"].items() if isinstance(value, int | float)},
        errors=sum(call["error"] for call in record["calls"]),
        truncated=record["truncated"],
        surrogate=record.get("surrogate"),
        trace=tuple(trace_stretches(record["sft"])) if "sft" in record else (),
    )


def stretches(record: dict[str, Any]) -> Iterator[Stretch]:
    """Yield the completion of a line of rollouts.jsonl, cut wherever anything but the text changes."""
    marks = zip(*(record[name] for name in ("component", "turn", "policy_mask", "advantages")), strict=True)
    for text, (component, turn, trained, advantage) in _join(record["tokens"], marks):
        yield Stretch(text, _component_name(component), turn, bool(trained), advantage)


def trace_stretches(sft: dict[str, Any]) -> Iterator[TraceStretch]:
    """Yield the expert trace of a line of rollouts.jsonl, cut wherever component or weight change."""
    marks = zip(sft["component"], sft["weight"], strict=True)
    for text, (component, weight) in _join(sft["tokens"], marks):
        yield TraceStretch(text, _component_name(component), weight)


def first_and_last(views: list[View], each: int) -> list[View]:
    """Return up to `each` rollouts of the first step and as many of the last step, one for each task if possible."""
    if not views:
        return []
    steps = sorted({one.step for one in views})
    chosen: list[View] = []
    for step in dict.fromkeys((steps[0], steps[-1])):
        of_step = [one for one in views if one.step == step]
        unique = list({one.task: one for one in reversed(of_step)}.values())[::-1]
        rest = [one for one in of_step if one not in unique]
        chosen += [*unique, *rest][:each]
    return chosen


def _join(tokens: Iterable[str], marks: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Join the texts of consecutive tokens with equal marks."""
    for mark, group in groupby(zip(tokens, marks, strict=True), key=lambda pair: pair[1]):
        yield "".join(token for token, _ in group), mark


def _component_name(component: int) -> str:
    return Component(component).name.lower()
