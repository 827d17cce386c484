"""The run directory: made by exactly one process, whole or not at all, resumable after anything."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from agentrl.config.load import load_config, typed_config
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.store.identity import changed_keys, config_hash, run_path
from agentrl.store.run import LOCK_HELD, RunDirectory
from tests.support.helpers import changed, composed

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def base() -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed_config(compose("config"))


@pytest.fixture
def config(base: Config, tmp_path: Path) -> Config:
    return changed(base, runs_dir=str(tmp_path / "runs"))


@pytest.fixture
def run(config: Config) -> RunDirectory:
    created = RunDirectory.create(config)
    assert created is not None
    return created


# --- identity and creation ----------------------------------------------------------------------------------------


def test_identity_is_what_determines_the_result(base: Config) -> None:
    elsewhere = changed(
        base, runs_dir="/x", name="y", run_id="z", dry_run=True, tracker=changed(base.tracker, tags=["t"])
    )
    assert config_hash(elsewhere) == config_hash(base)
    assert changed_keys(base, elsewhere) == []
    other = changed(base, trainer=changed(base.trainer, learning_rate=1.0))
    assert config_hash(other) != config_hash(base)
    assert changed_keys(base, other) == ["trainer.learning_rate"]
    assert run_path(changed(base, seed=3)).name.startswith("s3-")
    assert run_path(changed(base, runs_dir="r", run_id="mine")) == Path.cwd() / "r" / base.name / "mine"


def test_how_verdicts_are_paid_for_is_no_part_of_the_identity_and_may_change(tmp_path: Path) -> None:
    def judged(*overrides: str) -> Config:
        return composed(f"runs_dir={tmp_path}", "judge=openai", "judge.model=m", *overrides)

    first = RunDirectory.create(judged("judge.max_cost=1"))
    assert first is not None
    raised = judged("judge.max_cost=2", "judge.concurrency=2")
    assert run_path(raised) == first.path
    second_server = judged("judge.base_url=http://127.0.0.1:1/v1")
    assert run_path(second_server) != first.path  # its verdicts may be others: it is asked
    assert changed_keys(raised, second_server) == ["judge.base_url"]
    first.adopt(raised)
    assert first.config() == raised
    other = judged("judge.temperature=0.5")
    assert changed_keys(raised, other) == ["judge.temperature"]
    with pytest.raises(ValueError, match="another run"):
        first.adopt(other)


def test_creation_writes_the_whole_record(run: RunDirectory, config: Config) -> None:
    assert load_config(run.config_path) == config == run.config()
    environment = json.loads(run.environment_path.read_text())
    assert environment["packages"]["torch"]
    assert environment["hardware"]["cores"] == os.cpu_count()
    assert environment["seeds"] == {"run": 0, "data": 0}
    assert run.status()["status"] == "created"
    assert run.eval_dir.is_dir()
    assert run.checkpoints_dir.is_dir()
    assert run.plots_dir.is_dir()
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]  # no draft is left


def test_an_existing_run_is_never_touched(run: RunDirectory, config: Config) -> None:
    run.set_status("completed")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert RunDirectory.create(config) is None
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def create_at(config: Config, start: float, answers: Any) -> None:
    time.sleep(max(0, start - time.time()))
    answers.put(RunDirectory.create(config) is not None)


def test_of_several_processes_one_creates(config: Config) -> None:
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    start = time.time() + 0.3
    processes = [context.Process(target=create_at, args=(config, start, answers)) for _ in range(6)]
    for process in processes:
        process.start()
    results = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(results) == [False] * 5 + [True]
    assert RunDirectory(run_path(config)).config() == config


def test_a_crash_while_creating_leaves_no_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "set_status", fail)
        with pytest.raises(RuntimeError):
            RunDirectory.create(config)
    assert list(run_path(config).parent.iterdir()) == []
    assert RunDirectory.create(config) is not None


def test_data_files_are_hashed(config: Config, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_bytes(b"abc")
    created = RunDirectory.create(changed(config, bench=changed(composed("bench=toolhop").bench, path=str(data))))
    assert created is not None
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert json.loads(created.environment_path.read_text())["data"]["bench.path"] == known


# --- what the disk refuses ----------------------------------------------------------------------------------------


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_path_below_a_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(lambda: RunDirectory.create(changed(config, runs_dir=str(tmp_path / "file"))))
    assert "a part of the path is a file" in message


def test_a_directory_that_is_not_writable(config: Config, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the read-only mount below covers it")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert "you may not write there" in refusal(lambda: RunDirectory.create(changed(config, runs_dir=str(folder))))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small tmpfs at `folder`; skips where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root and CAP_SYS_ADMIN")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(bytes(4096)):
            pass


def test_a_read_only_file_system(config: Config, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "ro,size=64k"):
        message = refusal(lambda: RunDirectory.create(changed(config, runs_dir=str(tmp_path / "ro"))))
    assert "read-only" in message
    assert "runs_dir=" in message


def test_a_full_disk(config: Config, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=256k"):
        here = changed(config, runs_dir=str(tmp_path / "small"))
        filler = tmp_path / "small" / "filler"
        fill(filler)
        assert "free some space" in refusal(lambda: RunDirectory.create(here))
        assert not run_path(here).exists()
        filler.unlink()
        created = RunDirectory.create(here)
        assert created is not None
        fill(filler)
        refusal(lambda: created.set_status("completed", note="x" * 10_000))
        assert created.status()["status"] == "created"  # the old content, whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_simulated_disk_errors(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    run.set_status("running")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        message = refusal(lambda: run.set_status("completed"))
    assert os.strerror(number) in message
    assert run.status()["status"] == "running"
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".")] == []  # no temporary file is left


def test_append_to_a_full_device(run: RunDirectory) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    run.metrics_path.symlink_to("/dev/full")
    assert "No space left on device" in refusal(lambda: run.append(run.metrics_path, {"step": 1}))


# --- status and records -------------------------------------------------------------------------------------------


def test_status(run: RunDirectory) -> None:
    created = run.status()["created"]
    run.set_status("failed", error="why")
    assert run.status()["error"] == "why"
    run.set_status("running")
    assert "error" not in run.status()
    assert run.status()["created"] == created


def test_status_of_what_is_no_run(tmp_path: Path, run: RunDirectory) -> None:
    assert "not a run directory" in refusal(RunDirectory(tmp_path).status)
    run.status_path.write_text('{"status": "comp')
    assert "damaged" in refusal(run.status)


class Scalar:
    """Stands for a tensor or a numpy number."""

    def item(self) -> float:
        return 0.5


def test_records_are_strict_json(run: RunDirectory) -> None:
    record = {"step": 1, "loss": math.nan, "big": math.inf, "x": Scalar(), "path": Path("a"), "list": (1, True, None)}
    run.append(run.metrics_path, record)
    run.append(run.metrics_path, {"step": 2})
    first, second = run.metrics_path.read_text().splitlines()
    strict = json.loads(first, parse_constant=lambda word: pytest.fail(word))
    assert strict == {"step": 1, "loss": None, "big": None, "x": 0.5, "path": "a", "list": [1, True, None]}
    assert run.read_metrics() == [strict, json.loads(second)]
    assert run.records(run.path / "absent.jsonl") == []


def test_truncate_drops_later_steps_and_the_torn_line(run: RunDirectory) -> None:
    for path in (run.metrics_path, run.rollouts_path):
        for step in range(1, 6):
            run.append(path, {"step": step})
        run.append(path, {"note": "no step"})
        with path.open("a") as file:
            file.write('{"step": 2, "torn')
    run.truncate_after(3)
    assert run.metrics_path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"note": "no step"}\n'
    # Rollouts carry the updates made before them: those of step 3 are sampled again.
    assert run.rollouts_path.read_text() == '{"step": 1}\n{"step": 2}\n{"note": "no step"}\n'
    assert not run.timing_path.exists()
    run.truncate_after(0)
    assert run.metrics_path.read_text() == '{"note": "no step"}\n'


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 2}', "\x00\x00"])
def test_a_record_never_grows_on_a_torn_one(run: RunDirectory, torn: str) -> None:
    run.append(run.metrics_path, {"step": 1})
    with run.metrics_path.open("a") as file:
        file.write(torn)
    assert run.read_metrics() == [{"step": 1}]
    run.append(run.metrics_path, {"step": 3})
    assert run.metrics_path.read_text() == '{"step": 1}\n{"step": 3}\n'


REWRITE = """
import sys
from agentrl.store.run import RunDirectory
while True:
    RunDirectory(sys.argv[1]).set_status("running", text="x" * 5000)
"""


@pytest.mark.slow
def test_readers_never_see_half_a_file(run: RunDirectory) -> None:
    """A process rewrites the status all the time and is killed in the middle, again and again."""
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", REWRITE, str(run.path)])
        deadline = time.time() + 20
        while run.status()["status"] != "running" and time.time() < deadline:
            time.sleep(0.01)
        until = time.time() + 0.1
        while time.time() < until:
            assert run.status()["status"] == "running"
        writer.kill()
        writer.wait()
        assert len(run.status()["text"]) == 5000
        run.set_status("created")


# --- the lock -----------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from agentrl.store.run import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_lock_excludes_other_processes_and_dies_with_its_owner(run: RunDirectory) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"process {owner.pid}"), run.lock():
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    with run.lock():
        pass


def test_lock_is_free_again_after_use(run: RunDirectory) -> None:
    with run.lock(), pytest.raises(UserError, match=f"process {os.getpid()}"), run.lock():
        pass
    with run.lock():
        pass


def test_the_launchers_lock_counts_for_its_worker(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.lock():
        monkeypatch.setenv(LOCK_HELD, str(run.path))
        with run.lock() as descriptor:
            assert descriptor is None
        monkeypatch.setenv(LOCK_HELD, str(run.path) + "-other")
        with pytest.raises(UserError), run.lock():
            pass
