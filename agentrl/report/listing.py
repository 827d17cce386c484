"""Collect what `agentrl ls` shows of each run: status, what it trains, and its key result; without torch."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from agentrl.config.meanings import suggest
from agentrl.core.errors import UserError
from agentrl.report.arms import read_settings
from agentrl.store.run import RunDirectory, find_runs, is_gone

STATUSES = ["created", "running", "dead", "completed", "failed", "interrupted", "dry_run", "damaged"]
Cell = dict[str, float | None]  # mean, lo, hi, n as in summary.json


@dataclass(frozen=True)
class Listed:
    """One run. `status` is the status in status.json, "dead" if its process is gone, or "damaged"."""

    path: str
    status: str
    algo: str = ""
    model: str = ""
    bench: str = ""
    seed: int | None = None
    step: int | None = None  # updates made
    max_steps: int | None = None  # number of all updates, once training has begun
    metric: str = ""  # the bench's key metric
    before: Cell | None = None
    after: Cell | None = None
    difference: Cell | None = None
    created: str = ""
    updated: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def age_s(self) -> float:
        """Seconds since the run's status last changed; infinite if that is not known."""
        try:
            return time.time() - datetime.strptime(self.updated, "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except ValueError:
            return float("inf")


def list_runs(places: list[Path], filters: dict[str, str]) -> list[Listed]:
    """Return the runs at or below `places` that pass every filter, the newest first.

    A filter names `status`, `name` (part of the path), a group (`algo`, `model`, `bench`) or a key of the
    configuration. Its value is one or several patterns such as `qwen*`, separated by commas.

    Raises:
        UserError: a place does not exist, or no run has a value for a filter.
    """
    for wanted in filters.get("status", "*").split(","):
        if not any(fnmatchcase(status, wanted) for status in STATUSES):
            raise UserError(f"status={wanted} is not a choice{suggest(wanted, STATUSES)}")
    found: list[tuple[Listed, dict[str, Any]]] = []
    for place in places:
        if not place.exists():
            raise UserError(f"{place} does not exist; name directories that hold runs")
        found += [list_run(path.absolute()) for path in find_runs(place)]
    unique = {run.path: (run, settings) for run, settings in found}.values()
    known = {"status", "name", "algo", "model", "bench", *(key for _, settings in unique for key in settings)}
    for name in filters:
        if unique and name not in known:
            raise UserError(f"{name}: no run here has that key{suggest(name, sorted(known))}")
    kept = [run for run, settings in unique if all(_passes(run, settings, *one) for one in filters.items())]
    return sorted(kept, key=lambda run: run.age_s)


def list_run(path: Path) -> tuple[Listed, dict[str, Any]]:
    """Return one run and its flat settings. A run whose files are damaged gets the status "damaged"."""
    run = RunDirectory(path)
    try:
        settings, status, summary = read_settings(path), run.status(), run.summary() or {}
    except UserError as error:
        return Listed(str(path), "damaged", error=str(error)), {}
    metric = str(summary.get("solve_metric", ""))
    cells = {phase: values.get(metric) for phase, values in summary.get("eval", {}).items()}
    last = run.last_metrics()
    state = str(status["status"])
    if state == "running" and is_gone(str(status.get("pid")), str(status.get("host", ""))):
        state = "dead"
    return Listed(
        str(path),
        state,
        **{group: str(settings.get(f"{group}.name", "")) for group in ("algo", "model", "bench")},
        seed=settings.get("seed"),
        step=summary.get("steps", last.get("step")),
        max_steps=status.get("max_steps"),
        metric=metric,
        before=cells.get("before"),
        after=cells.get("after"),
        difference=cells.get("difference"),
        created=str(status.get("created", "")),
        updated=str(status.get("updated", "")),
        error=str(status.get("error", "")),
    ), settings


def _passes(run: Listed, settings: dict[str, Any], name: str, patterns: str) -> bool:
    if name == "name":
        return any(fnmatchcase(run.path, f"*{pattern}*") for pattern in patterns.split(","))
    value = getattr(run, name) if name in ("status", "algo", "model", "bench") else settings.get(name)
    return any(fnmatchcase(str(value), pattern) or _equal(value, pattern) for pattern in patterns.split(","))


def _equal(value: Any, text: str) -> bool:
    """Check whether `text` writes a number or a truth value: 1e-4 is 0.0001, and true is True."""
    if isinstance(value, bool) or value is None:
        return text.lower() == {True: "true", False: "false", None: "null"}[value]
    try:
        return isinstance(value, int | float) and float(text) == value
    except ValueError:
        return False
