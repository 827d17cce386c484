"""`agentrl doctor [--json] [key=value ...]`: check whether this machine is ready for a run."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.table import Table

from agentrl.commands.arguments import say, split_keys
from agentrl.config.compose import compose
from agentrl.core.console import make_console
from agentrl.runner.doctor import diagnose

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}

HELP = """agentrl doctor [--json] [key=value ...]

Checks this machine for the run that the overrides describe, e.g. agentrl doctor model=qwen3-4b hardware=gpu.
The exit code is 1 if something must be fixed."""


def main(arguments: list[str]) -> int:
    """Print one line for each check; return exit code 1 if any failed."""
    as_json = "--json" in arguments
    _, overrides = split_keys([argument for argument in arguments if argument != "--json"], {})
    config = compose(overrides)
    if not as_json:
        say("checking; loading PyTorch, TRL and the tokenizer takes some seconds")
    findings = list(diagnose(config))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for finding in findings:
            style = STYLES[finding.verdict]
            fix = f"\n[bold]-> {_plain(finding.fix)}[/bold]" if finding.fix else ""
            table.add_row(f"[{style}]{finding.verdict}[/{style}]", finding.check, _plain(finding.detail) + fix)
        make_console(markup=True).print(table)
    return int(any(finding.verdict == "fail" for finding in findings))


def _plain(text: str) -> str:
    """Return `text` with nothing that rich would read as markup."""
    return text.replace("[", r"\[")
