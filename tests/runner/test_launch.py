"""A worker is started, stopped and resumed; small scripts stand in for the real worker."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import agentrl
from tests.support.stand_in_workers import (
    AGENT,
    COMPLETES,
    CRASHES,
    DIES_WITH_IT,
    DRIVER,
    PRELUDE,
    REFUSES,
    SIGNALS,
    TORCHRUN,
    WAITS,
    alive,
    finish,
    start,
    starts,
    the_run,
    wait_for,
    wait_until_running,
)


@pytest.mark.slow
def test_a_dry_run_does_not_block_the_run(tmp_path: Path) -> None:
    assert finish(start(tmp_path, COMPLETES, "dry_run=true"))[0] == 0
    assert finish(start(tmp_path, COMPLETES))[0] == 0
    assert the_run(tmp_path).status()["status"] == "completed"


def test_a_killed_worker_is_recorded_and_resumed_and_a_completed_run_is_not_repeated(
    tmp_path: Path, no_worker: None
) -> None:
    code, out, _ = finish(start(tmp_path, CRASHES))
    assert code == 128 + signal.SIGKILL
    assert "resumes" in out
    status = the_run(tmp_path).status()
    assert (status["status"], "signal 9" in status["error"]) == ("failed", True)
    code, out, _ = finish(start(tmp_path, COMPLETES))
    assert code == 0
    assert "Resuming" in out and str(the_run(tmp_path).path) in out
    assert starts(the_run(tmp_path)) == 2
    shown = agentrl(tmp_path)
    assert shown.returncode == 0
    assert "summary.json" in shown.stdout
    assert "seed=" in shown.stdout


def test_the_launcher_returns_the_workers_exit_code(tmp_path: Path) -> None:
    assert finish(start(tmp_path, REFUSES))[0] == 2
    assert the_run(tmp_path).status()["error"] == "bad"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_once(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, WAITS)
    run = wait_until_running(tmp_path)
    process.send_signal(number)
    code, out, err = finish(process)
    assert code == 130
    assert Path(str(run.path) + ".signals").read_text() == f"{int(signal.SIGTERM)} "
    assert run.status()["status"] == "interrupted"
    assert "resumes" in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_signal_kills(tmp_path: Path) -> None:
    process = start(tmp_path, WAITS, SAVING="60")
    run = wait_until_running(tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "*.signals")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert run.status()["status"] == "interrupted"


@pytest.mark.slow
def test_the_leader_of_several_processes_is_told_and_may_take_its_time(tmp_path: Path) -> None:
    process = start(tmp_path, WAITS, "hardware.processes=2", driver=TORCHRUN, SAVING="1")
    run = wait_until_running(tmp_path)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert run.status()["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a child ignores is set together with Linux's signal")
def test_a_batch_system_may_tell_every_process_of_a_job(tmp_path: Path) -> None:
    process = start(tmp_path, DIES_WITH_IT + WAITS, "hardware.processes=2", driver=TORCHRUN, SAVING="1")
    run = wait_until_running(tmp_path)
    command = psutil.Process(process.pid)
    for one in [*command.children(recursive=True), command]:
        one.send_signal(signal.SIGUSR1)
    assert finish(process)[0] == 130
    assert run.status()["status"] == "interrupted"
    assert Path(f"{run.path}.signals").read_text() == f"{signal.SIGTERM:d} "  # it was told once, and has saved


@pytest.mark.slow
def test_a_torchrun_that_waits_for_a_lost_machine_is_ended(tmp_path: Path) -> None:
    saves = PRELUDE + "import socket; run.set_status('running', pid=os.getpid(), host=socket.gethostname())\n"
    saves += "time.sleep(2.5); run.set_status('interrupted')"
    waits = AGENT.replace("sys.exit(", "worker.wait(); import time; time.sleep(60); sys.exit(")
    driver = TORCHRUN.replace(
        "agentrl.commands.cli.main()", "agentrl.runner.launch.LINGER_S = 0.5; agentrl.commands.cli.main()"
    )
    began = time.monotonic()
    code, _, said = finish(start(tmp_path, saves, "hardware.processes=2", driver=driver, AGENT=waits))
    assert code == 130 and "another machine is lost" in said and time.monotonic() - began < 30
    assert the_run(tmp_path).status()["status"] == "interrupted"


@pytest.mark.slow
def test_a_signal_before_a_leader_exists_goes_to_torchrun(tmp_path: Path) -> None:
    waits = DIES_WITH_IT + PRELUDE + "time.sleep(60)"
    process = start(tmp_path, waits, "hardware.processes=2", driver=TORCHRUN)
    wait_for(tmp_path, "*.starts")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert the_run(tmp_path).status()["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_second_signal_kills_all_of_several_processes(tmp_path: Path) -> None:
    process = start(tmp_path, DIES_WITH_IT + WAITS, "hardware.processes=2", driver=TORCHRUN, SAVING="60")
    run = wait_until_running(tmp_path)
    worker = run.status()["pid"]
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "*.signals")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    deadline = time.time() + 20
    while alive(worker) and time.time() < deadline:
        time.sleep(0.05)
    assert not alive(worker)
    assert run.status()["status"] == "interrupted"


@pytest.mark.slow
def test_nohup_is_respected(tmp_path: Path) -> None:
    goes = PRELUDE + (
        "run.set_status('running', pid=os.getpid())\n"
        "while not os.path.exists(str(run.path) + '.go'): time.sleep(0.02)\n"
        "ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "run.set_status('completed' if ignored else 'failed')"
    )
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = start(tmp_path, goes, driver=nohup + DRIVER)
    run = wait_until_running(tmp_path)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    Path(str(run.path) + ".go").touch()
    assert finish(process)[0] == 0
    assert run.status()["status"] == "completed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="makes a terminal as Linux does")
def test_a_terminal_that_hangs_up_leaves_a_checkpoint(tmp_path: Path) -> None:
    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=os.environ | {"WORKER": WAITS}, preexec_fn=take_terminal,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    run = wait_until_running(tmp_path)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    assert run.status()["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_in_progress_is_not_started_twice(tmp_path: Path) -> None:
    first = start(tmp_path, WAITS)
    run = wait_until_running(tmp_path)
    code, out, err = finish(start(tmp_path, WAITS))
    assert code == 2
    assert "is in use by process" in err
    assert "Resuming" not in out
    assert starts(run) == 1
    first.send_signal(signal.SIGINT)
    finish(first)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    process = start(tmp_path, WAITS)
    run = wait_until_running(tmp_path)
    worker = run.status()["pid"]
    process.kill()
    process.communicate()
    deadline = time.time() + 20
    while alive(worker) and time.time() < deadline:
        time.sleep(0.05)
    assert not alive(worker)
    with run.lock():  # the lock is free once the worker has ended
        assert run.status()["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_same_command_waits_for_the_worker_of_a_killed_one(tmp_path: Path) -> None:
    saves_until_told = WAITS.replace(
        'time.sleep(float(os.environ.get("SAVING", "0")))',
        'while not os.path.exists(str(run.path) + ".saved"): time.sleep(0.02)',
    )
    first = start(tmp_path, saves_until_told)
    run = wait_until_running(tmp_path)
    first.kill()
    second = start(tmp_path, COMPLETES)
    assert second.stderr is not None
    assert "waiting for its worker to stop" in second.stderr.readline()
    Path(str(run.path) + ".saved").touch()
    assert finish(second)[0] == 0
    first.communicate()
    assert starts(run) == 2
