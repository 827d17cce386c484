"""Make the tables of the docs again: list what is run and how long it takes, then run it, one table after the other.

    make reproduce ARGS=--list                              # list only
    make reproduce                                          # everything
    make reproduce ARGS="pact_table2 seed=0 hardware.threads=1"

Words without "=" choose tables, key=value goes to every run. The same command goes on where it was stopped: sweeps and
comparisons do not repeat finished runs. A table that fails does not stop the next one. Hours are of one core.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PAPERS = "docs/pact_paper.md", "docs/hipo_paper.md"
AGENTRL = f"{shlex.quote(sys.executable)} -m agentrl"
SCRIPT = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).parent))}"


@dataclass(frozen=True)
class Table:
    """One table: the commands that make it. `{keys}` stands for every key=value, `{shared}` for all but the seed."""

    page: str
    what: str
    hours: float
    measured: bool  # whether somebody saw it take that long; otherwise it is runs times minutes of one run
    commands: tuple[str, ...]


TABLES: dict[str, Table] = {
    "methods": Table(
        *("docs/methods.md", "SFT, GRPO and PACT on minihop, 15 runs", 0.8, True),
        (f"{AGENTRL} sweep=methods runs_dir=runs/methods {{keys}}", f"{SCRIPT}/compare_methods.py runs/methods"),
    ),
    "pact_table1": Table(
        *(PAPERS[0], "Table 1 of PACT with its baselines and neighbours on minihop, 85 runs", 2.4, False),
        (f"{SCRIPT}/compare_table1.py runs/pact_table1 {{keys}}",),
    ),
    "pact_table2": Table(
        *(PAPERS[0], "Table 2 of PACT, the terms of the loss and a control, 30 runs", 1.8, False),
        (f"{AGENTRL} sweep=pact_table2 runs_dir=runs/pact_table2 {{keys}}",),
    ),
    "pact_table3": Table(
        *(PAPERS[0], "Table 3 of PACT, parts of the trace, 20 runs", 1.2, False),
        (f"{AGENTRL} sweep=pact_table3 runs_dir=runs/pact_table3 {{keys}}",),
    ),
    "hard_setting": Table(
        *("docs/minihop.md", "SFT, GRPO and PACT where the base never succeeds, 25 runs", 2.9, False),
        (f"{AGENTRL} sweep=hard_setting runs_dir=runs/hard_setting {{keys}}",),
    ),
    "pact_rule": Table(
        *("docs/pact.md", "PACT and L^x under a system rule, 6 runs", 0.4, False),
        (
            f"{AGENTRL} -m experiment=pact_rule seed=0,1,2 runs_dir=runs/pact_rule {{keys}}",
            f"{AGENTRL} -m experiment=pact_rule algo.q=1 algo.sft_coef=0 seed=0,1,2 runs_dir=runs/pact_rule {{keys}}",
        ),
    ),
    "pact_schedule": Table(
        *(PAPERS[0], "Tables 4 and 6 of PACT, schedules, 8 runs", 0.5, False),
        (f"{AGENTRL} sweep=pact_schedule runs_dir=runs/pact_schedule {{keys}}",),
    ),
    "pact_q": Table(
        *(PAPERS[0], "Figure 4 of PACT, anchoring, 6 runs", 0.4, False),
        (f"{AGENTRL} sweep=pact_q runs_dir=runs/pact_q {{keys}}",),
    ),
    "pact_adaptive": Table(
        *(PAPERS[0], "adaptive schedules of PACT, 20 runs", 1.2, False),
        (f"{AGENTRL} sweep=pact_adaptive runs_dir=runs/pact_adaptive {{keys}}",),
    ),
    "hipo": Table(
        *(PAPERS[1], "Tables 1 and 7 of HIPO with all arms on minihif, 85 runs", 0.6, False),
        (f"{SCRIPT}/compare_hipo.py runs/hipo_minihif --jobs 1 -- {{shared}}",),
    ),
    "hipo_ratio": Table(
        *("docs/hipo.md", "the importance ratio of HIPO, 9 runs", 0.1, False),
        (
            f"{AGENTRL} -m algo=hipo algo.tau=0.8 algo.importance_level=sequence_mean,sequence,token seed=0,1,2 "
            "runs_dir=runs/hipo_ratio {keys}",
        ),
    ),
    "hipo_dual": Table(
        *(PAPERS[1], "rules for HIPO's multiplier, 12 runs", 0.1, False),
        (f"{AGENTRL} sweep=hipo_dual_lr runs_dir=runs/hipo_dual {{keys}}",),
    ),
    "hipo_phase": Table(
        *("docs/hipo.md", "rules for HIPO's multiplier with 120 updates, 32 runs", 0.5, False),
        (f"{SCRIPT}/compare_dual.py runs/hipo_phase --jobs 1 -- {{shared}}",),
    ),
    "trace_baselines": Table(
        *("docs/baselines.md", "CHORD and LUFFY on minihop, one seed, 2 runs", 0.1, False),
        (f"{AGENTRL} -m algo=chord,luffy runs_dir=runs/trace_baselines {{keys}}",),
    ),
    "diagnosis": Table(
        *("docs/evidence.md", "what the gradients of PACT say on minihop, 1 run", 0.1, True),
        (f"{AGENTRL} trainer.diagnose=4 runs_dir=runs/diagnosis {{keys}}",),
    ),
}


def listing(chosen: list[str], keys: list[str]) -> str:
    """List the chosen tables: hours, page and what is run with the given keys."""
    lines = []
    for name in chosen:
        table = TABLES[name]
        source = "took" if table.measured else "estimated"
        lines.append(f"{name:16} {table.hours:4.1f} h ({source})  {table.page}: {table.what}")
        lines += [f"    {shown(filled(command, keys))}" for command in table.commands]
    total = sum(TABLES[name].hours for name in chosen)
    return "\n".join([*lines, f"{'together':16} {total:4.1f} h of one core"])


def filled(command: str, keys: list[str]) -> str:
    """Return a command with the keys in place."""
    return command.format(keys=shlex.join(keys), shared=shlex.join(key for key in keys if not key.startswith("seed=")))


def shown(command: str) -> str:
    """Return a command as a person types it."""
    short = {f"{AGENTRL} ": "agentrl ", f"{SCRIPT}/": "python benchmarks/"}
    for long, name in short.items():
        command = command.replace(long, name)
    return command.removesuffix(" -- ").strip()


def make(name: str, keys: list[str]) -> bool:
    """Run the commands of a table. Return whether all of them succeeded."""
    for command in TABLES[name].commands:
        whole = filled(command, keys)
        print(f"\n{name}: {shown(whole)}", flush=True)
        if subprocess.run(shlex.split(whole)).returncode != 0:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the tables and run nothing")
    parser.add_argument("words", nargs="*", metavar="WORD", help=f"key=value, or tables: {', '.join(TABLES)}")
    options = parser.parse_args()
    keys = [word for word in options.words if "=" in word]
    chosen = [word for word in options.words if "=" not in word] or list(TABLES)
    if unknown := set(chosen) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; choose from {', '.join(TABLES)}")
    print(listing(chosen, keys), flush=True)
    if options.list:
        return 0
    failed = [name for name in chosen if not make(name, keys)]
    if failed:
        print(f"\nfailed: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
