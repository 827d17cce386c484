"""`agentrl report RUN... [out=report.html] [title=...]`: one page about some runs, and the same tables as Markdown."""

from __future__ import annotations

from pathlib import Path

from agentrl.config.compose import command_keys
from agentrl.errors import UserError

KEYS = {
    "out": "File to write, ending in .html; the Markdown goes beside it. Default: report.html in the first directory.",
    "title": "Heading of the page.",
}

HELP = f"""agentrl report RUN [RUN ...] [key=value ...]

Runs that differ in nothing but the seed are pooled; a directory stands for the runs in it.

{chr(10).join(f"  {key:<6} {sentence}" for key, sentence in KEYS.items())}"""


def main(arguments: list[str]) -> int:
    """Write the page and say where it is. Raises UserError where no run is found or the page cannot be written."""
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    paths = [Path(argument) for argument in arguments if "=" not in argument]
    own, unknown = command_keys([argument for argument in arguments if "=" in argument], KEYS)
    if unknown:
        raise UserError(f"agentrl report does not know {unknown[0]}; its keys are {', '.join(KEYS)}")
    if not paths:
        raise UserError("agentrl report needs run directories, or a directory that holds some: agentrl report runs/...")
    out = Path(own.get("out", paths[0] / "report.html"))
    if out.suffix != ".html":
        raise UserError(f"out={out} must end in .html")
    # Matplotlib takes a second to import; a mistake above is answered at once.
    from agentrl.report.arms import load_records
    from agentrl.report.page import build_report, render

    records = load_records(paths)
    report = build_report(records, own.get("title") or _title(paths))
    for kind in ("html", "md"):
        file = out.with_suffix(f".{kind}")
        try:
            file.write_text(render(report, kind))
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}; choose another out=...") from error
        print(file)
    return 0


def _title(paths: list[Path]) -> str:
    return ", ".join(path.absolute().name for path in paths)
