"""Measure sandboxed tool calls per second, in three ways: as rollouts do, a process per task, a process per call.

    python benchmarks/sandbox_throughput.py                        # two tools written here
    python benchmarks/sandbox_throughput.py ToolHop.json           # the example calls in the tools' own sources

A task is the calls of one row, each in a fresh namespace. Each worker has a thread that goes through the tasks. The
three ways run in turns, warm, on the same calls; the last column is the ratio of medians. Nothing else should run at
the same time. For the second and third way a class is added to every source. The sandbox then no longer treats the
source as simple; simple sources share a process across tasks.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.benches.toolhop_rows import load_rows
from agentrl.mining.examples import example_calls
from agentrl.sandbox import Sandbox

Call = tuple[str, str, dict[str, Any]]  # source, function, arguments
LETTERS = "def letters(name):\n    return {'count': sum(c.isalpha() for c in name)}\n"
YEARS = "import datetime\ndef years(born, year):\n    return year - datetime.date.fromisoformat(born).year\n"
OWN: list[list[Call]] = [
    [(LETTERS, "letters", {"name": f"Ann Lee {n}"}), (YEARS, "years", {"born": "1962-03-14", "year": 1990 + n})] * 2
    for n in range(20)
]


def tasks_of(path: Path) -> Iterator[list[Call]]:
    """Yield the first example call of every tool, by row."""
    for row in load_rows(path):
        calls = []
        for name, source in row.sources.items():
            try:
                calls += [(source, name, arguments) for arguments in example_calls(source, ast.parse(source), name)][:1]
            except SyntaxError:
                continue  # a source that no version of Python accepts
        if calls:
            yield calls


OTHER = "\nclass Other: pass\n"
WAYS = ("as rollouts do", "a process for a task", "a process for a call")


def seconds(sandbox: Sandbox, tasks: list[list[Call]], way: str) -> float:
    """Return the wall-clock time of all tasks in seconds."""
    waiting = list(tasks)

    def work() -> None:
        while waiting:
            calls = waiting.pop()
            caller = sandbox if way == WAYS[2] else sandbox.episode()
            for source, function, arguments in calls:
                caller.call(source if way == WAYS[0] else source + OTHER, function, arguments)

    threads = [threading.Thread(target=work) for _ in range(sandbox.workers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="ToolHop.json")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="approximate number of calls in a round")
    arguments = parser.parse_args()
    rows = list(tasks_of(arguments.path)) if arguments.path else OWN
    per_pass = sum(map(len, rows))
    tasks = rows * max(1, round(arguments.calls / per_pass))
    count = sum(map(len, tasks))
    with Sandbox(workers=arguments.workers) as sandbox:
        failed = sum(sandbox.call(*call).error is not None for calls in rows for call in calls)
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in WAYS:
            seconds(sandbox, rows, way)
        for _ in range(arguments.rounds):
            for way in WAYS:
                took[way].append(seconds(sandbox, tasks, way))
        missing = sandbox.missing()
    rates = {way: count / statistics.median(times) for way, times in took.items()}
    print(f"{len(rows)} tasks, {per_pass / len(rows):.1f} calls each, {failed} of {per_pass} calls are errors")
    print(f"{arguments.workers} workers on {os.cpu_count()} cores; isolation missing: {', '.join(missing) or 'none'}")
    print(f"{'calls/s':>24} {'median':>8} {'worst':>8} {'ratio':>8}")
    for way in WAYS:
        print(f"{way:>24} {rates[way]:8.0f} {count / max(took[way]):8.0f} {rates[way] / rates[WAYS[2]]:8.1f}")
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
