"""`agentrl report RUN... [out=report.html] [title=...]`: make one page about some runs, or tables for a paper."""

from __future__ import annotations

from pathlib import Path

from agentrl.commands.arguments import file_to_write, key_lines, split_places
from agentrl.core.errors import UserError

KEYS = {
    "out": "A .html (and a .md beside it), .md, .tex (LaTeX, booktabs) or .csv file; default: RUN/report.html.",
    "title": "Heading of the page.",
}

KINDS = (".html", ".md", ".tex", ".csv")
RESULTS = ("Results", "Differences")  # the sections for a paper

HELP = f"""agentrl report RUN [RUN ...] [key=value ...]

Makes one page about the runs. Runs that differ only in the seed are pooled. A directory stands for the runs in it.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Write the page and print its path. Raise UserError if no run is found or the page cannot be written."""
    places, own = split_places(arguments, KEYS)
    if not places:
        raise UserError("name run directories, or a directory that holds some: agentrl report RUN [RUN ...]")
    paths = [Path(place).expanduser() for place in places]
    out = file_to_write(own["out"], kinds=KINDS) if "out" in own else paths[0] / "report.html"
    # Matplotlib is slow to import; a mistake above is reported at once.
    from agentrl.report.arms import load_records
    from agentrl.report.page import build_report, render

    records = load_records(paths)
    report = build_report(records, own.get("title") or _title(paths))
    if out.suffix in (".tex", ".csv"):
        from agentrl.report.files import write_tables

        write_tables(out, [table for name in RESULTS for table in report.tables[name] if table.rows], records)
        print(out)
        return 0
    for kind in ("html", "md") if out.suffix == ".html" else ("md",):
        file = out.with_suffix(f".{kind}")
        try:
            file.write_text(render(report, kind), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}; choose another out=...") from error
        print(file)
    return 0


def _title(paths: list[Path]) -> str:
    return ", ".join(path.absolute().name for path in paths)
