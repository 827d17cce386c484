"""The jobs of a sweep are started and stopped; small scripts stand in for the real worker."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.command_line import agentrl
from tests.support.stand_in_workers import (
    COMPLETES,
    DRIVER,
    PRELUDE,
    SIGNALS,
    WAITS,
    finish,
    parallel,
    start,
    the_run,
    wait_until_running,
)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_stops_a_sweep(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, WAITS, "-m", "seed=0,1")
    wait_until_running(tmp_path)
    process.send_signal(number)
    assert finish(process)[0] == 130
    assert the_run(tmp_path).status()["status"] == "interrupted"  # and no second job has begun
    (record,) = tmp_path.glob("runs/sweeps/*/sweep.json")
    assert [job["state"] for job in json.loads(record.read_text())["jobs"]] == ["interrupted", "pending"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_between_two_jobs_stops_the_sweep_and_is_recorded(tmp_path: Path, number: signal.Signals) -> None:
    pauses = """
import agentrl.commands.cli, time
def pause(job):
    open("paused", "w").close()
    time.sleep(60)
agentrl.commands.cli._job = pause
"""
    driver = DRIVER.replace("agentrl.commands.cli.main()", pauses + "agentrl.commands.cli.main()")
    process = start(tmp_path, COMPLETES, "-m", "seed=0,1", driver=driver)
    deadline = time.time() + 30
    while not (tmp_path / "paused").exists():
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    code, _, err = finish(process)
    assert (code, "Traceback" in err) == (130, False)


def test_an_internal_error_before_the_first_job_fails_the_sweep(
    tmp_path: Path, no_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.runner.start.check_reach", lambda config: 1 / 0)
    done = agentrl(tmp_path, "-m", "seed=0,1")
    assert (done.returncode, "ZeroDivisionError" in done.stderr) == (1, True)
    assert list(tmp_path.glob("runs/*/*/status.json")) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_jobs_side_by_side_save_before_their_sweep_ends(tmp_path: Path, number: signal.Signals) -> None:
    overrides, environment = parallel(tmp_path)
    process = start(tmp_path, WAITS, "-m", "seed=0,1,2", *overrides, SAVING="1", **environment)
    deadline, running = time.time() + 60, 0
    while running < 2:
        assert time.time() < deadline
        found = [json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/[!.]*/status.json")]
        running = found.count("running")
        time.sleep(0.02)
    process.send_signal(number)
    code, _, err = finish(process)
    assert (code, "Traceback" in err) == (130, False)
    ends = [json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/[!.]*/status.json")]
    assert ends == ["interrupted", "interrupted"]
    (record,) = tmp_path.glob("runs/sweeps/*/sweep.json")
    states = sorted(job["state"] for job in json.loads(record.read_text())["jobs"])
    assert states == ["interrupted", "interrupted", "pending"]
    assert not (record.parent / "stopping").exists()


@pytest.mark.slow
def test_a_failing_job_does_not_stop_a_sweep_but_fails_it(tmp_path: Path) -> None:
    worker = PRELUDE + "run.set_status('completed' if run.config().seed else 'failed'); sys.exit(not run.config().seed)"
    code, _, _ = finish(start(tmp_path, worker, "-m", "seed=0,1"))
    assert code == 1
    found = [json.loads(file.read_text())["status"] for file in tmp_path.glob("runs/*/[!.]*/status.json")]
    assert sorted(found) == ["completed", "failed"]
