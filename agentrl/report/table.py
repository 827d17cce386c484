"""Show the result of a run: before, after and paired difference of every metric, each with its 95% interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrl.core.interval import Interval
from agentrl.report.markdown import cell

COLUMNS = ("metric", "before", "after", "difference", "items")
CAPTION = "mean [95% interval]; difference paired by item"


def result_table(summary: Mapping[str, Any]) -> Table:
    """Return `summary["eval"]` (as in summary.json) as a table; a difference whose interval excludes 0 is coloured."""
    table = Table(title=_title(summary), caption=CAPTION, title_justify="left")
    rows = _rows(summary)
    shown = _shown_columns(rows)
    for column in shown:
        table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for name, cells in rows:
        # Text, not markup: rich would read the brackets of an interval as a style.
        before, after, difference, items = (Text(cell) for cell in cells)
        difference.stylize({1: "green", -1: "red", 0: ""}[_verdict(_difference(summary, name))])
        row = (Text(name), before, after, difference, items)
        table.add_row(*(cell for column, cell in zip(COLUMNS, row, strict=True) if column in shown))
    return table


def result_text(summary: Mapping[str, Any]) -> str:
    """Return the same table in plain ASCII, for logs and pipes; * marks a difference whose interval excludes 0."""
    rows = _rows(summary)
    if not rows:
        return "no evaluation results"
    lines = [list(COLUMNS)]
    for name, cells in rows:
        mark = "*" if _verdict(_difference(summary, name)) else ""
        lines.append([name, cells[0], cells[1], cells[2] + mark, cells[3]])
    shown = _shown_columns(rows)
    lines = [[cell for column, cell in zip(COLUMNS, line, strict=True) if column in shown] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([_title(summary), *body, CAPTION])


def missing_text(summary: Mapping[str, Any]) -> str:
    """Return how many items were not played, and why; empty if none is missing."""
    missing, too_long = summary.get("missing"), summary.get("too_long")
    if not missing and too_long:
        return f"{too_long} test items are left out: their prompt exceeds rollout.max_prompt_tokens."
    if not missing:
        return ""
    reasons = list(missing["reasons"].items())
    told = "; ".join(f"{count} times: {reason}" for reason, count in reasons[:3])
    more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    return f"{missing['items']} items are missing, and the same command tries them again. {told}{more}"


def sampling_text(sampling: Mapping[str, Any]) -> str:
    """Return the sampling settings that an endpoint was sent, and those that it refuses and chooses itself."""
    sent = ", ".join(f"{name} {value:g}" for name, value in sampling["sent"].items())
    own = ", ".join(sampling["chosen_by_server"])
    return f"the server got {sent or 'no values'}" + (f"; it refuses and chooses itself: {own}" if own else "")


def print_result(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table on a terminal; print plain lines elsewhere, or if the terminal is too narrow."""
    console = console or Console()
    table = result_table(summary)
    wanted = console.measure(table, options=console.options.update(width=1000)).maximum
    if console.is_terminal and wanted <= console.width:
        console.print(table)
    else:
        console.print(result_text(summary), markup=False, highlight=False, soft_wrap=True)
    if missing := missing_text(summary):
        console.print(missing, markup=False, highlight=False, soft_wrap=True)


def _shown_columns(rows: list[tuple[str, tuple[str, str, str, str]]]) -> list[str]:
    """Return the columns that hold values: a run that only evaluates has no before, and so no difference."""
    filled = [any(cells[i] != "-" for _, cells in rows) for i in range(len(COLUMNS) - 1)]
    return [COLUMNS[0], *(column for column, full in zip(COLUMNS[1:], filled, strict=True) if full)]


def _title(summary: Mapping[str, Any]) -> str:
    parts = [f"{key}={summary[key]}" for key in ("algo", "model", "bench", "seed", "steps") if key in summary]
    return " ".join(parts)


def _difference(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return (summary["eval"].get("difference") or {}).get(name)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, tuple[str, str, str, str]]]:
    parts = [summary.get("eval", {}).get(part) or {} for part in ("before", "after", "difference")]
    names = dict.fromkeys(name for part in parts for name in part)  # in the order of the file
    rows = []
    for name in names:
        cells = [_cell(part.get(name), signed=i == 2) for i, part in enumerate(parts)]
        counts = {part[name]["n"] for part in parts if name in part}
        rows.append((name, (cells[0], cells[1], cells[2], "/".join(str(n) for n in sorted(counts)))))
    return rows


def _cell(interval: Mapping[str, Any] | None, signed: bool) -> str:
    return cell(None if interval is None else Interval.from_dict(interval), signed, absent="-")


def _verdict(interval: Mapping[str, Any] | None) -> int:
    """Return 1 or -1 if the whole interval lies above or below 0, else 0."""
    if interval is None or interval["lo"] is None:
        return 0
    return int(interval["lo"] > 0) - int(interval["hi"] < 0)
