"""`agentrl compare A B [out=FILE]`: show paired differences between two runs, and the settings that differ."""

from __future__ import annotations

from pathlib import Path

from agentrl.commands.arguments import file_to_write, key_lines, split_places
from agentrl.core.errors import UserError

KEYS = {"out": "File for the tables: .md, .tex (LaTeX, booktabs) or .csv (the numbers)."}
KINDS = (".md", ".tex", ".csv")
HELP = f"""agentrl compare A B [out=FILE]

Shows every metric of A and of B after training, B - A with its 95% interval, and the keys whose values differ. A and B
are runs, or directories whose runs differ only in the seed. Two single runs are paired by item, several seeds by seed.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Print the comparison. Raise UserError if A or B is not a run, or if they have nothing to compare."""
    places, own = split_places(arguments, KEYS)
    if len(places) != 2:
        raise UserError("name two runs: agentrl compare A B")
    out = file_to_write(own["out"], kinds=KINDS) if "out" in own else None
    from agentrl.report.arms import load_records
    from agentrl.report.comparison import compare_tables
    from agentrl.report.files import markdown, write_tables

    first, second = (load_records([Path(place).expanduser()]) for place in places)
    tables = compare_tables(first, second, places[0], places[1])
    print("\n\n".join(markdown(table) for table in tables))
    if out is not None:
        write_tables(out, tables, [*first, *second])
        print(f"\n{out}")
    return 0
