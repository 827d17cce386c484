"""Measure the structure of the code: python benchmarks/structure.py [PACKAGE ...], by default this checkout's package.

A room is a folder of the package, or a file at its top level. An arrow is a pair of rooms of which one imports the
other. A knot is a set of rooms that import each other, directly or not. Climbing arrows (imports of a higher floor) are
counted if every room is one of the floors of tests/project/test_structure.py. To compare, name the `agentrl` folder of
another checkout.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def measure(package: Path) -> dict[str, Any]:
    """Return the numbers of one package folder, by name."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(package.rglob("*.py"))}
    arrows = {
        (room_of(file.relative_to(package)), room)
        for file, tree in trees.items()
        for room in imported_rooms(tree, package)
        if room != room_of(file.relative_to(package))
    }
    rooms = {room_of(file.relative_to(package)) for file in trees} - {"__init__", "__main__"}
    arrows = {(a, b) for a, b in arrows if a in rooms and b in rooms}
    functions = [(length, name) for file, tree in trees.items() for length, name in functions_of(tree, file.stem)]
    lines = {str(file.relative_to(package)): len(file.read_text(encoding="utf-8").splitlines()) for file in trees}
    floors = floors_of_this_checkout()
    climbing = sum(floors.index(b) > floors.index(a) for a, b in arrows) if rooms <= set(floors) else None
    return {
        "rooms": len(rooms),
        "loose files": sum(file.parent == package and file.stem in rooms for file in trees),
        "arrows": len(arrows),
        "climbing arrows": climbing,
        "knots": [sorted(knot) for knot in knots(rooms, arrows)],
        "files": len(trees),
        "lines": sum(lines.values()),
        "longest file": max(lines.items(), key=lambda item: item[1]),
        "longest function": max(functions),
        "mean function": round(sum(length for length, _ in functions) / len(functions), 1),
        "refusals by hand in config": sum(map(refusals, (t for f, t in trees.items() if "config" in f.parts))),
    }


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST, package: Path) -> Iterator[str]:
    """Yield the rooms that a module imports from, lazy imports and imports for types included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package.name:
            names = node.module.split(".")[1:]
            yield from names[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package.name}."))


def functions_of(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield the number of lines, docstring included, and the name of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{module}.{node.name}"


def refusals(tree: ast.AST) -> int:
    """Count the calls of `require`: ranges and choices that have their own line of code."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(isinstance(call.func, ast.Name) and call.func.id == "require" for call in calls)


def knots(rooms: set[str], arrows: set[tuple[str, str]]) -> list[set[str]]:
    """Return the sets of two or more rooms that all reach each other."""
    reach = {room: {b for a, b in arrows if a == room} for room in rooms}
    for middle in rooms:
        for room in rooms:
            if middle in reach[room]:
                reach[room] |= reach[middle]
    found = {frozenset(b for b in reach[a] if a in reach[b]) for a in rooms if a in reach[a]}
    return [set(knot) for knot in found]


def floors_of_this_checkout() -> list[str]:
    """Read FLOORS from the structure test without running it."""
    tree = ast.parse((ROOT / "tests/project/test_structure.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLOORS":
            return list(ast.literal_eval(node.value))
    raise SystemExit("tests/project/test_structure.py names no FLOORS")


if __name__ == "__main__":
    for given in sys.argv[1:] or [str(ROOT / "agentrl")]:
        print(json.dumps({"package": given, **measure(Path(given))}, indent=1))
