"""Rollouts for reading: stretches of tokens that share turn, component and advantage, and which rollouts to show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from agentrl.core.trajectory import Component


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens alike in everything a reader looks at."""

    text: str
    component: str  # name of a Component, lower case
    turn: int
    trained: bool  # sampled by the policy and so part of the policy loss; the rest is context
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
    rewards: tuple[float, ...]  # per turn, or of the reply as a whole
    metrics: dict[str, float]
    errors: int
    truncated: bool
    surrogate: str | None = None  # PACT: the clipped loss that trained on it, L^x or L^h
    trace: tuple[TraceStretch, ...] = ()  # PACT: h* beside it, as the SFT term weighs it

    @property
    def reward(self) -> float:
        return sum(self.rewards)

    def turn_advantages(self) -> dict[int, float]:
        """Advantage of the policy's tokens of each turn (they share one)."""
        return {stretch.turn: stretch.advantage for stretch in self.stretches if stretch.trained}


def view(record: dict[str, Any]) -> View:
    """A line of rollouts.jsonl as a `View`."""
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
    """The completion of a line of rollouts.jsonl, cut where anything but the text changes."""
    marks = zip(*(record[name] for name in ("component", "turn", "policy_mask", "advantages")), strict=True)
    for text, (component, turn, trained, advantage) in _join(record["tokens"], marks):
        yield Stretch(text, _component_name(component), turn, bool(trained), advantage)


def trace_stretches(sft: dict[str, Any]) -> Iterator[TraceStretch]:
    """The expert trace of a line of rollouts.jsonl, cut where component or weight change."""
    marks = zip(sft["component"], sft["weight"], strict=True)
    for text, (component, weight) in _join(sft["tokens"], marks):
        yield TraceStretch(text, _component_name(component), weight)


def first_and_last(views: list[View], each: int) -> list[View]:
    """Up to `each` rollouts of the first step and as many of the last one, one a task where possible."""
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
    """Texts of consecutive tokens with equal marks, joined."""
    for mark, group in groupby(zip(tokens, marks, strict=True), key=lambda pair: pair[1]):
        yield "".join(token for token, _ in group), mark


def _component_name(component: int) -> str:
    return Component(component).name.lower()
