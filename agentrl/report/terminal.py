"""Show rollouts and evaluation items on a terminal: filters, colours by component, marks on trained tokens."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from agentrl.config.meanings import suggest
from agentrl.core.errors import UserError
from agentrl.report.rollouts import View

COLOURS = {"reasoning": "cyan", "tool_call": "yellow", "answer": "green", "observation": "dim", "delimiter": "dim"}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq,
}  # fmt: skip
Facts = dict[str, float]  # the numbers of one rollout that a filter may name


def parse_filter(text: str) -> Callable[[Facts], bool]:
    """Turn a filter such as `reward<1,errors>0` into a test: all comparisons must hold, and all names must exist.

    Raises:
        UserError: a part of the filter does not compare a name with a number.
    """
    tests = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found = re.fullmatch(r"([\w@^.]+)\s*(<=|>=|!=|<|>|=)\s*(-?\d+(?:\.\d+)?)", part)
        if not found:
            raise UserError(f"where: '{part}' is not a comparison; write e.g. where='reward<1,errors>0,r_sys<0.7'")
        tests.append((found[1], COMPARISONS[found[2]], float(found[3])))
    return lambda rollout_numbers: all(
        name in rollout_numbers and compare(rollout_numbers[name], bound) for name, compare, bound in tests
    )


def refuse_unknown(text: str, known: set[str]) -> None:
    """Raise UserError if a filter names a number that nothing here has, so nothing would ever pass."""
    for name in re.findall(r"([\w@^.]+)\s*[<>=!]", text):
        if known and name not in known:
            raise UserError(f"where: nothing here has a number {name}{suggest(name, sorted(known))}")


def find_tasks(text: str, ids: set[str]) -> set[str]:
    """Return the task with the id `text`; else the tasks whose id holds it as whole words; else all that hold it."""
    whole = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
    return {text} & ids or {name for name in ids if whole.search(name)} or {name for name in ids if text in name}


def rollout_numbers(view: View) -> Facts:
    """Return the numbers of a rollout that a filter may name: its metrics, and what the run recorded beside them."""
    recorded = {"reward": view.reward, "errors": view.errors, "step": view.step, "truncated": float(view.truncated)}
    return view.metrics | recorded | {"turns": float(len(view.rewards))}


def item_numbers(item: dict[str, Any]) -> Facts:
    """Return the same numbers for an item of eval/*.jsonl."""
    numbers = {name: value for name, value in item["metrics"].items() if isinstance(value, int | float)}
    others = {"errors": item["tool_errors"], "truncated": float(item["truncated"]), "turns": item["turns"]}
    return numbers | others | {"calls": item["calls"], "tokens": item["tokens"]}


def rollout_panel(view: View, prompt: bool) -> Panel:
    """Show one rollout: sampled text in colour, text of the environment dimmed, rewards and advantages by turn."""
    text = Text()
    for part in view.stretches:
        style = COLOURS.get(part.component, "")
        if part.trained and part.advantage:
            style += " underline" if part.advantage > 0 else " italic"
        text.append(part.text, style=style)
    advantages = view.turn_advantages()
    turns = Text("\n")
    for turn, reward in enumerate(view.rewards):
        turns.append(f"turn {turn + 1}: reward {reward:.3f}", style="bold")
        turns.append(f", advantage {advantages[turn]:+.3f}   " if turn in advantages else "   ")
    parts: list[RenderableType] = [Text(view.prompt, style="dim"), text] if prompt else [text]
    parts.append(turns)
    if view.surrogate:
        parts.append(
            Text(f"in the loss {view.surrogate}" + (" and, with its expert trace, L_SFT:" if view.trace else ""))
        )
    if view.trace:
        trace = Text()
        for piece in view.trace:
            trace.append(piece.text, style=COLOURS.get(piece.component, "") if piece.weight > 0 else "dim")
        parts.append(trace)
    title = f"{view.task} after {view.step} updates: reward {view.reward:.3f}, {_numbers(view.metrics)}"
    ending = ["cut off by the token budget"] if view.truncated else []
    ending += [f"failed calls: {view.errors}"] if view.errors else []
    return Panel(Group(*parts), title=Text(title), subtitle=Text(", ".join(ending)), title_align="left", expand=False)


def item_panel(item: dict[str, Any], title: str) -> Panel:
    """Show one evaluated item as its messages."""
    text = Text()
    for message in item["messages"]:
        content = message.get("content") or ""
        if message["role"] == "assistant":
            calls = message.get("tool_calls") or []
            reasoning = message.get("reasoning_content")
            if reasoning:
                text.append(f"{reasoning}\n", style=COLOURS["reasoning"])
            if content:
                text.append(f"{content}\n", style=COLOURS["reasoning" if calls else "answer"])
            for call in calls:
                function = call.get("function", call)
                text.append(f"{function['name']}({function['arguments']})\n", style=COLOURS["tool_call"])
        else:
            text.append(f"{content}\n", style=COLOURS["observation"])
    return Panel(text, title=Text(f"{title}: {_numbers(item['metrics'])}"), title_align="left", expand=False)


def compare_items(before: list[dict[str, Any]], after: list[dict[str, Any]], width: int) -> Iterator[RenderableType]:
    """Show each item of `after` with the same item of `before`, side by side if the terminal is wide enough."""
    first = {(item["id"], item["sample"]): item for item in before}
    for item in after:
        old = first.get((item["id"], item["sample"]))
        if old is None:
            yield item_panel(item, str(item["id"]))
            continue
        panels = [item_panel(old, f"{item['id']} before"), item_panel(item, f"{item['id']} after")]
        if width >= 120:
            yield Columns([Group(panel) for panel in panels], width=width // 2 - 1, expand=True)
        else:
            yield Group(*panels)


def print_legend(console: Console) -> None:
    """Print one line that explains the colours."""
    line = Text()
    for name in ("reasoning", "tool_call", "answer", "observation"):
        line.append(name.replace("_", " "), style=COLOURS[name])
        line.append("  ")
    line.append("underlined", style="underline")
    line.append(": positive advantage  ")
    line.append("italic", style="italic")
    line.append(": negative; dim text is context and never trained on")
    console.print(line)


def _numbers(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if isinstance(value, int | float))
