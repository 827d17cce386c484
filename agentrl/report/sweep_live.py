"""Show a sweep while it runs: a table on a terminal, kept up to date; elsewhere a line for each change."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentrl.core.console import is_on_terminal
from agentrl.store.durable import last_records
from agentrl.store.run import RunDirectory
from agentrl.store.sweeps import Job, Sweep, label, split_overrides

EVERY = 1.0  # seconds between two looks at the jobs
COLOURS = {"submitted": "blue", "running": "cyan", "completed": "green", "failed": "red", "interrupted": "yellow"}
# keys of metrics.jsonl; the first two that a run has are shown
HEADLINES = ("solve_rate", "r_user", "r_sys", "reward", "loss/total")
RECENT = 10  # the time of the last updates gives the time of the remaining ones
SHOWN = 20  # number of rows at most; running and failed jobs come first


class SweepView:
    """Shows a sweep from the beginning to the end of a `with` block, while the jobs run here or elsewhere."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep, self._console = sweep, console
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=1 / EVERY, transient=True)
        self._known: dict[str, str] = {}
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SweepView:
        if is_on_terminal(self._console):
            self._live.start(refresh=True)
        else:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if is_on_terminal(self._console):
            self._live.stop()
        else:
            self._over.set()
            self._watcher.join()
            self._changes()

    def table(self) -> Table:
        """Return a table of the jobs as they are now."""
        jobs = self._sweep.jobs()
        counts = Counter(job.state for job in jobs)
        caption = ", ".join(f"{count} {state}" for state, count in counts.items())
        return job_table(jobs, caption)

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._changes()

    def _changes(self) -> None:
        jobs = self._sweep.jobs()
        common, _ = split_overrides(jobs)
        for job in jobs:
            name = label(job, common)
            if job.state != "pending" and self._known.get(name) != job.state:
                self._known[name] = job.state
                done = sum(other.state not in ("pending", "submitted", "running") for other in jobs)
                text = f"[{done}/{len(jobs)}] {job.state}: {name}  {progress(job)}".rstrip()
                self._console.print(text, markup=False, highlight=False)


def job_table(jobs: list[Job], caption: str) -> Table:
    """Return a table with one row for each job; with more than twenty jobs, only the most important."""
    common, _ = split_overrides(jobs)
    urgency = ("running", "failed", "interrupted", "submitted", "completed", "dry_run", "pending")
    rows = sorted(jobs, key=lambda job: urgency.index(job.state))[:SHOWN]
    # Text, not markup: rich would read the brackets of a path as a style
    title = Text(" ".join(common)) if common else None
    table = Table(title=title, caption=Text(caption), title_justify="left", caption_justify="left")
    for name in ("job", "state", "progress", "minutes"):
        table.add_column(name, justify="right" if name == "minutes" else "left", overflow="fold")
    for job in sorted(rows, key=jobs.index):
        spent = f"{((job.ended or time.time()) - job.began) / 60:.1f}" if job.began else ""
        state = Text(job.state, style=COLOURS.get(job.state, "dim"))
        table.add_row(Text(label(job, common)), state, Text(progress(job)), spent)
    return table


def progress(job: Job) -> str:
    """Return how far the run is, or why it ended."""
    if job.error:
        return job.error.strip().splitlines()[-1][:200]
    if job.directory is None or not job.directory.metrics_path.exists():
        return ""
    metrics = job.directory.last_metrics()
    shown = [f"{name.split('/')[0]} {metrics[name]:.3f}" for name in HEADLINES if metrics.get(name) is not None]
    return "  ".join([describe_steps(job.directory, int(metrics.get("step", 0))), *shown[:2]])


def describe_steps(run: RunDirectory, step: int) -> str:
    """Return e.g. `step 12/30  eta 3:20`: the updates made, all updates, and the time that the others will take."""
    status = run.status() if run.status_path.exists() else {}
    total = status.get("max_steps")
    if total is None:
        return f"step {step}"
    made = f"step {step}/{total}"
    seconds = [record["seconds"] for record in last_records(run.timing_path, RECENT) if "seconds" in record]
    if status["status"] != "running" or not seconds or step >= total:
        return made
    left = int((total - step) * sum(seconds) / len(seconds))
    clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}" if left >= 3600 else f"{left // 60}:{left % 60:02d}"
    return f"{made}  eta {clock}"
