"""Track a run in Weights & Biases: its files as they grow, and at the end the report and the plots.

W&B sends from its own process, so logging does not wait. Every wait has a limit. If the server cannot be reached, the
run is recorded offline and can be sent later.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from agentrl.config.schema import Config
from agentrl.core.errors import first_line
from agentrl.store.run import RunDirectory
from agentrl.tracking.base import Guard, Tracker, warn
from agentrl.tracking.sections import OTHER, SECTIONS, add_section

INIT_SECONDS = 20  # how long to wait for the server at the start
FINISH_SECONDS = 60  # how long to wait for the last uploads; what is not sent stays on disk
MAX_TABLES = 100  # tables of rollouts sent in a run, evenly spread; rollouts.jsonl has all rollouts
COLUMNS: list[str | int] = ["task", "prompt", "completion", "reward", "metrics", "truncated"]
MARK = "wandb.json"  # in the run directory: the id under which a resumed run continues


class WandbTracker(Tracker):
    """`tracker=wandb` (WANDB_MODE is respected) and `tracker=wandb_offline`."""

    def __init__(self, config: Config, run: RunDirectory) -> None:
        self._config, self._run = config, run
        self._guard = Guard(config.tracker.name)
        mark = run.path / MARK
        self._resumed = mark.exists()
        if not self._resumed:
            run.write_json(mark, {"id": secrets.token_hex(8), "project": config.tracker.project})
        identity = str(json.loads(mark.read_text(encoding="utf-8"))["id"])
        self._session: Any = None
        mode = "offline" if config.tracker.name == "wandb_offline" else os.environ.get("WANDB_MODE", "online")
        with self._guard():
            try:
                self._session = self._begin(identity, mode)
            except Exception as error:  # no network, no key, a refusal: W&B raises a class for each
                if mode != "online":
                    raise
                warn(f"W&B cannot be reached, so this run is recorded offline: {first_line(error)}")
                wandb.teardown()  # W&B's process still holds the id
                self._session = self._begin(identity, "offline")
            if not self._session.offline and self._session.url:
                print(f"W&B: {self._session.url}", flush=True)

    def _begin(self, identity: str, mode: Any) -> Any:
        config, tracker = self._config, self._config.tracker
        session = wandb.init(
            project=tracker.project,
            entity=tracker.entity,
            group=tracker.group,
            job_type="train" if config.algo.trains else "eval",
            tags=list(dict.fromkeys([config.algo.name, config.model.name, config.bench.name, *tracker.tags])),
            name=f"{config.name}/{self._run.path.name}",
            id=identity,
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(self._run.path),
            config=config.model_dump() | {"commit": read_commit(self._run)},
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                login_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                x_graphql_retry_max=2,
                x_graphql_timeout_seconds=INIT_SECONDS,
                console="off",  # otherwise it would read our output before secrets are masked
                disable_git=True,  # environment.json holds commit and diff
                disable_code=True,
                quiet=True,
            ),
        )
        session.define_metric("step", hidden=True)
        for section in (*SECTIONS, OTHER):
            session.define_metric(f"{section}/*", step_metric="step")
        return session

    def attach(self, trainer: Trainer) -> None:
        if self._session is not None:
            trainer.add_callback(_Follow(self._run, self._session, self._guard, self._resumed))

    def close(self, state: str) -> None:
        """Send summary, report and plots of a complete run, then finish within a minute."""
        results = Guard("wandb", "report and plots")
        if self._session is not None:
            with self._guard():
                if state == "completed":
                    self._session.summary.update(
                        flatten_results(json.loads(self._run.summary_path.read_text(encoding="utf-8")))
                    )
                    with results():
                        self._session.log_artifact(self._results())
                self._session.finish(exit_code=0 if state == "completed" else 1)
        unsent = [*(self._run.path / "wandb").glob("offline-run-*")]
        if not results.works:  # the server is gone
            unsent += (self._run.path / "wandb").glob("run-*")
        if unsent:
            print(f"W&B, to send what was recorded offline: wandb sync {shlex.join(map(str, unsent))}", flush=True)

    def _results(self) -> Any:
        from agentrl.report.arms import load_records
        from agentrl.report.page import build_report, render

        artifact = wandb.Artifact(f"results-{self._session.id}", type="report")
        report = build_report(load_records([self._run.path]), f"{self._config.name}/{self._run.path.name}")
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("html", "md"):
                page = Path(folder) / f"report.{kind}"
                page.write_text(render(report, kind), encoding="utf-8")
                artifact.add_file(str(page), page.name)  # copies the file at once
        artifact.add_dir(str(self._run.plots_dir), "plots")
        for path in (self._run.summary_path, self._run.config_path):
            artifact.add_file(str(path), path.name)
        return artifact


class _Follow(TrainerCallback):
    """Sends what the run's files have gained since the last update."""

    def __init__(self, run: RunDirectory, session: Any, guard: Guard, resumed: bool) -> None:
        self._session, self._guard, self._resumed = session, guard, resumed
        self._numbers = (Tail(run.metrics_path), Tail(run.timing_path))
        self._rollouts = Tail(run.rollouts_path)
        # A table asks the server before it is sent; numbers do not. Without a network only the tables are lost.
        self._tables = Guard("wandb", "rollout tables")
        self._next_table = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._resumed:  # the old lines were sent before; a run that was not tracked before is sent from its start
            for tail in (*self._numbers, self._rollouts):
                tail.skip()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._guard.works:
            return
        with self._guard():
            updates: dict[int, dict[str, Any]] = {}
            for tail in self._numbers:
                for record in tail.read():
                    step = int(record.pop("step"))
                    numbers = {add_section(name): value for name, value in record.items() if value is not None}
                    updates.setdefault(step, {}).update(numbers)
            for step, values in sorted(updates.items()):
                self._session.log({"step": step, **values})
        if not self._tables.works:
            return
        with self._tables():
            batches: dict[int, list[dict[str, Any]]] = {}
            for record in self._rollouts.read():
                batches.setdefault(record["step"], []).append(record)
            for step, batch in sorted(batches.items()):
                if step >= self._next_table:
                    self._session.log({f"rollouts/step_{step:06d}": rollout_table(batch)})
                    self._next_table = step + math.ceil(state.max_steps / MAX_TABLES)


class Tail:
    """Reads the records that a file of JSON lines has gained since the last read."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def skip(self) -> None:
        """Skip what the file holds now."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield complete lines only; an unfinished line is read once it is finished."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def rollout_table(batch: list[dict[str, Any]]) -> Any:
    """Build a W&B table of some lines of rollouts.jsonl."""
    rows = [
        [
            line["task_id"],
            line["prompt"],
            "".join(line["tokens"]),
            sum(line["rewards"]),
            json.dumps(line["metrics"]),
            line["truncated"],
        ]
        for line in batch
    ]
    return wandb.Table(columns=COLUMNS, data=rows)


def flatten_results(summary: dict[str, Any]) -> dict[str, float]:
    """Flatten the intervals of summary.json: `eval/after/solve_rate`, and the same with `_lo` and `_hi`."""
    numbers: dict[str, float] = {}
    for phase, metrics in summary["eval"].items():
        for name, interval in metrics.items():
            for part, ending in (("mean", ""), ("lo", "_lo"), ("hi", "_hi")):
                if interval.get(part) is not None:
                    numbers[f"eval/{phase}/{name}{ending}"] = interval[part]
    return numbers


def read_commit(run: RunDirectory) -> str | None:
    """Return the commit that environment.json names; None for an installed package."""
    git = json.loads(run.environment_path.read_text(encoding="utf-8")).get("git")
    return None if git is None else git["commit"]
