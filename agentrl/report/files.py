"""Write the tables of a report as files: Markdown, LaTeX for a paper, CSV for other programs."""

from __future__ import annotations

from pathlib import Path

import pandas

from agentrl.core.errors import UserError
from agentrl.report.arms import RunRecord, group_into_arms, group_rank, list_metrics, pool_metric
from agentrl.report.markdown import markdown_table
from agentrl.report.page import Table

PHASES = ("before", "after", "difference")
LATEX_NAMES = {"–": "--", "±": "$\\pm$", "→": "$\\to$"}  # characters that LaTeX's escapes do not cover


def write_tables(path: Path, tables: list[Table], records: list[RunRecord]) -> None:
    """Write `tables` to a .md or .tex file, or the numbers of `records` to a .csv file.

    Raises:
        UserError: the file has another ending, or cannot be written.
    """
    match path.suffix:
        case ".md":
            text = "\n\n".join(markdown(table) for table in tables) + "\n"
        case ".tex":
            text = "\n\n".join(latex(table) for table in tables) + "\n"
        case ".csv":
            text = results_frame(records).to_csv(index=False)
        case _:
            raise UserError(f"out={path} must end in .md, .tex or .csv")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another out=...") from error


def markdown(table: Table) -> str:
    """Return a table as Markdown, with its title above and its note below."""
    return "\n\n".join(part for part in (table.title, markdown_table(table.head, table.rows), table.note) if part)


def latex(table: Table) -> str:
    """Return a LaTeX `table` environment with the rules of the booktabs package; all text is escaped."""
    frame = pandas.DataFrame(table.rows, columns=table.head)
    caption = " ".join(part.rstrip(".") + "." for part in (table.title, table.note) if part)
    escaped = frame.rename(columns=_escape).map(_escape)
    columns = "l" + "r" * (len(table.head) - 1)
    return str(escaped.to_latex(index=False, escape=False, column_format=columns, caption=_escape(caption) or None))


def results_frame(records: list[RunRecord]) -> pandas.DataFrame:
    """Return a data frame with one row for each bench, arm, group of items, phase and metric; seeds are pooled.

    Columns: bench, arm, group and value ("" for all items), phase (before, after, difference), metric, mean, lo and hi
    (95%; empty if no interval is known), n (seeds, or items if an arm has one run), seeds.
    """
    rows = []
    for bench in dict.fromkeys(str(record.settings["bench.name"]) for record in records):
        _, arms = group_into_arms([record for record in records if record.settings["bench.name"] == bench])
        parts = {part for arm in arms for run in arm.completed for name in run.by for part in _values(run, name)}
        for arm in arms:
            for part in (None, *sorted(parts, key=lambda part: (part[0], group_rank(part[1])))):
                for phase in PHASES:
                    for metric in list_metrics(arms):
                        cell = pool_metric(arm, phase, metric, part)
                        if cell is not None:
                            group, value = part or ("", "")
                            numbers = (cell.mean, cell.lo, cell.hi, cell.n, len(arm.completed))
                            rows.append((bench, arm.label, group, value, phase, metric, *numbers))
    names = ["bench", "arm", "group", "value", "phase", "metric", "mean", "lo", "hi", "n", "seeds"]
    return pandas.DataFrame(rows, columns=names)


def _values(run: RunRecord, group: str) -> list[tuple[str, str]]:
    return [(group, value) for value in run.by[group]]


def _escape(text: str) -> str:
    """Return `text` with LaTeX's special characters escaped."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | LATEX_NAMES
    return "".join(special.get(character, character) for character in text)
