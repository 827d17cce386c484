"""Trackers: what reaches W&B's files and TensorBoard's, and that none of them can end a run."""

from __future__ import annotations

import json
import os
import secrets
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory
from agentrl.tracking import tracker as trackers
from agentrl.tracking.sections import add_section
from agentrl.tracking.tracker import track_run
from tests.support.helpers import composed

ROLLOUT = {
    "task_id": "t0",
    "prompt": "Q?",
    "tokens": ["4", "2"],
    "metrics": {"solve_rate": 1.0},
    "truncated": False,
    "component": [4, 4],
    "policy_mask": [1, 1],
    "turn": [0, 0],
    "advantages": [0.5, 0.5],
    "calls": [],
}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("reward", "reward/reward"),
        ("r_sys/conflict", "reward/r_sys/conflict"),
        ("loss/sft", "objective/loss/sft"),
        ("lambda/sys", "constraint/lambda/sys"),
        ("anneal/level", "annealing/anneal/level"),
        ("tools/error_rate", "tools/tools/error_rate"),
        ("completion/mean_tokens", "lengths/completion/mean_tokens"),
        ("tokens_per_s", "throughput/tokens_per_s"),
        ("novelty", "other/novelty"),
    ],
)
def test_a_metric_stands_in_its_section(name: str, shown: str) -> None:
    assert add_section(name) == shown


class Trainer:
    """As much of a trainer as a tracker uses: it logs two updates whose records stand in the run's files."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self.callbacks = run, list[Any]()
        self.args = TrainingArguments(output_dir=str(run.path / "out"), report_to=[], use_cpu=True)
        self.model = SimpleNamespace(config=None)

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def train(self, steps: range = range(1, 3)) -> None:
        state, control = TrainerState(max_steps=4, is_world_process_zero=True), TrainerControl()
        for callback in self.callbacks:
            callback.on_train_begin(self.args, state, control, model=self.model)
        for step in steps:
            self._run.append(self._run.rollouts_path, {"step": step - 1, "rewards": [0.5, 1.0], **ROLLOUT})
            self._run.append(self._run.metrics_path, {"step": step, "loss/total": 0.5 * step, "lambda/sys": None})
            self._run.append(self._run.timing_path, {"step": step, "tokens_per_s": 10.0})
            state.global_step = step
            for callback in self.callbacks:
                callback.on_log(self.args, state, control, logs={"loss": 0.5 * step, "epoch": 0.1})
        for callback in self.callbacks:
            callback.on_train_end(self.args, state, control)


@pytest.fixture
def make_run(tmp_path: Path) -> Any:
    def make(*overrides: str) -> tuple[Config, RunDirectory]:
        config = composed(f"runs_dir={tmp_path}", *overrides)
        run = RunDirectory.create(config)
        assert run is not None
        return config, run

    return make


def finish(run: RunDirectory) -> None:
    interval = {"mean": 0.5, "lo": 0.25, "hi": 0.75, "n": 4}
    summary = {"steps": 2, "wall_s": 1.0, "tokens": {"seen": 10}, "eval": {"after": {"solve_rate": interval}}}
    run.write_json(run.summary_path, summary)
    (run.plots_dir / "reward.png").write_bytes(b"png")
    run.set_status("completed")


def sent(run: RunDirectory) -> Iterator[Any]:
    """The records of W&B's offline files, oldest first: a 7-byte header, then blocks of 32 KiB as LevelDB's log has."""
    import wandb
    from wandb.proto import wandb_internal_pb2 as messages

    wandb.teardown()  # its process writes the last records when it ends, as it does with a worker
    for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        data, position, parts = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[position : position + 7])
            parts += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or last part
                record = messages.Record()
                record.ParseFromString(parts)
                yield record
                parts = b""


def history(run: RunDirectory) -> list[dict[str, Any]]:
    rows = [record.history.item for record in sent(run) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row} for row in rows]


@pytest.mark.slow
def test_wandb_offline_mirrors_the_run(make_run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    config, run = make_run("tracker=wandb_offline", "tracker.group=g", "tracker.tags=[mine]")
    with track_run(config, run) as tracker:
        trainer = Trainer(run)
        tracker.attach(trainer)  # type: ignore[arg-type]
        trainer.train()
        finish(run)
    records = list(sent(run))
    (begun,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
    assert (begun.run_group, begun.job_type, begun.project) == ("g", "train", "agentrl")
    assert begun.run_id == json.loads((run.path / "wandb.json").read_text())["id"]
    assert {"pact", "tiny", "minihop", "mine"} == set(begun.tags)
    assert {"algo", "trainer", "commit"} <= {item.key for item in begun.config.update}
    globs = {r.metric.glob_name: r.metric.step_metric for r in records if r.WhichOneof("record_type") == "metric"}
    assert globs["constraint/*"] == globs["throughput/*"] == "step"
    logged = history(run)
    keys = ("step", "objective/loss/total", "throughput/tokens_per_s")
    numbers = [{key: row[key] for key in keys} for row in logged if "step" in row]
    assert numbers == [
        {"step": 1, "objective/loss/total": 0.5, "throughput/tokens_per_s": 10.0},
        {"step": 2, "objective/loss/total": 1.0, "throughput/tokens_per_s": 10.0},
    ]
    assert not any("lambda" in name for row in logged for name in row), "null was sent"
    tables = sorted(run.path.glob("wandb/offline-run-*/files/media/table/rollouts/*.json"))
    assert [table.name[:11] for table in tables] == ["step_000000", "step_000001"]
    assert json.loads(tables[0].read_text())["data"] == [["t0", "Q?", "42", 1.5, '{"solve_rate": 1.0}', False]]
    artifacts = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    (artifact,) = [one for one in artifacts if one.name == f"results-{begun.run_id}"]
    names = {entry.path for entry in artifact.manifest.contents}
    assert {"report.html", "report.md", "plots/reward.png", "summary.json", "config.yaml"} <= names
    assert f"wandb sync {run.path}/wandb/offline-run-" in capfd.readouterr().out


def test_a_resumed_run_keeps_its_id_and_sends_only_what_is_new(make_run: Any) -> None:
    config, run = make_run("tracker=wandb_offline")
    for steps in (range(1, 3), range(3, 4)):
        with track_run(config, run) as tracker:
            trainer = Trainer(run)
            tracker.attach(trainer)  # type: ignore[arg-type]
            trainer.train(steps)
    begun = {record.run.run_id for record in sent(run) if record.WhichOneof("record_type") == "run"}
    assert len(begun) == 1
    assert sorted(row["step"] for row in history(run) if "step" in row) == [1, 2, 3]


@pytest.mark.slow
def test_an_unreachable_server_is_a_warning_and_the_run_is_recorded(tmp_path: Path, make_run: Any) -> None:
    _, run = make_run("tracker=wandb")
    key = secrets.token_hex(20)
    script = (
        "import sys; from agentrl.store.run import RunDirectory; from agentrl.tracking.tracker import track_run\n"
        "run = RunDirectory(sys.argv[1])\n"
        "with track_run(run.config(), run): print('trained')"
    )
    environment = os.environ | {
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": key,
        "WANDB_MODE": "online",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", script, str(run.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout and "wandb sync" in done.stdout
    assert "warning: W&B cannot be reached, so this run is recorded offline" in done.stderr
    assert list(run.path.glob("wandb/offline-run-*/*.wandb"))
    with_key = [p for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    assert not with_key and key not in done.stdout + done.stderr


def test_a_tracker_that_breaks_is_told_once(make_run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    config, run = make_run("tracker=tensorboard")
    (run.path / "tensorboard").write_text("in the way")
    with track_run(config, run) as tracker:
        trainer = Trainer(run)
        tracker.attach(trainer)  # type: ignore[arg-type]
        trainer.train()
    assert capfd.readouterr().err.count("tracker=tensorboard failed and is switched off, the run goes on") == 1


def test_tensorboard_holds_the_metrics_by_their_names_in_the_files(make_run: Any) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, run = make_run("tracker=tensorboard")
    with track_run(config, run) as tracker:
        trainer = Trainer(run)
        tracker.attach(trainer)  # type: ignore[arg-type]
        trainer.train()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss/total")] == [(1, 0.5), (2, 1.0)]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.config.rules.machine.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracker=tensorboard: .*pip install 'tensorboard"):
        validate(composed("tracker=tensorboard"))


def test_no_tracker_is_the_default_and_other_ranks_have_none(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = make_run()
    assert config.tracker.name == "none"
    config.tracker.name = "wandb_offline"
    monkeypatch.setenv("RANK", "1")
    with track_run(config, run) as tracker:
        assert type(tracker) is trackers.Tracker
    assert not (run.path / "wandb").exists()
