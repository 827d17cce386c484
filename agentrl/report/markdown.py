"""Format tables as Markdown that also lines up as plain text, and intervals for tables of any kind."""

from __future__ import annotations

import math

from agentrl.core.interval import Interval

TOO_FEW = "[too few]"  # shown instead of bounds if there are too few items or runs


def cell(interval: Interval | None, signed: bool = False, absent: str = "–") -> str:
    """Format an interval as `0.512 [0.480, 0.544]` or `0.512 [too few]`; `absent` if nothing was measured."""
    if interval is None or math.isnan(interval.mean):
        return absent
    form = "{:+.3f}" if signed else "{:.3f}"
    bounds = f"[{form.format(interval.lo)}, {form.format(interval.hi)}]" if interval.known else TOO_FEW
    return f"{form.format(interval.mean)} {bounds}"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of `rows`, each as long as `head`."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)
