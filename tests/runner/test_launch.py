"""A worker is started, stopped and resumed; small scripts stand in for the real worker."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from agentrl.config.compose import CONF
from agentrl.config.load import typed_config
from agentrl.config.schema import Config
from agentrl.runner import launch
from agentrl.store.identity import run_path
from agentrl.store.run import RunDirectory
from tests.support.command_line import agentrl
from tests.support.helpers import composed

SIGNALS = [signal.SIGINT, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGHUP))]

# The command line, with `python -c WORKER RUN_DIR` instead of the real worker.
DRIVER = """
import os, sys
import agentrl.commands.cli, agentrl.runner.launch
agentrl.runner.launch.worker_command = lambda run, config: [sys.executable, "-c", os.environ["WORKER"], str(run.path)]
agentrl.commands.cli.main()
"""
# The same with a stand-in for torchrun: its processes have their own sessions, and it does not wait for them.
AGENT = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
sys.exit(1 if worker.wait() else 0)
"""
TORCHRUN = DRIVER.replace('"-c", os', '"-c", os.environ["AGENT"], "-c", os')
PRELUDE = """
import os, signal, sys, time
from agentrl.store.run import RunDirectory
run = RunDirectory(sys.argv[1])
open(str(run.path) + ".starts", "a").write("x")
"""
DIES_WITH_IT = "from agentrl.runner.launch import die_with_launcher; die_with_launcher()\n"
COMPLETES = PRELUDE + "with run.lock(): run.set_status('completed')"
CRASHES = PRELUDE + "run.set_status('running'); os.kill(os.getpid(), signal.SIGKILL)"
REFUSES = PRELUDE + "run.set_status('failed', error='bad'); sys.exit(2)"
WAITS = (
    PRELUDE
    + """
def stop(number, frame):
    open(str(run.path) + ".signals", "a").write(f"{number} ")
    time.sleep(float(os.environ.get("SAVING", "0")))
    run.set_status("interrupted")
    os._exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
run.set_status("running", pid=os.getpid())
time.sleep(60)
"""
)


def start(where: Path, worker: str, *overrides: str, driver: str = DRIVER, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", driver, *overrides],
        cwd=where,
        env=os.environ | {"WORKER": worker, "AGENT": AGENT} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def the_run(where: Path) -> RunDirectory:
    (status,) = where.glob("runs/*/*/status.json")
    return RunDirectory(status.parent)


def wait_until_running(where: Path) -> RunDirectory:
    deadline = time.time() + 30
    while time.time() < deadline:
        found = list(where.glob("runs/*/*/status.json"))
        if found and json.loads(found[0].read_text())["status"] == "running":
            return RunDirectory(found[0].parent)
        time.sleep(0.02)
    raise AssertionError("the worker did not start")


def wait_for(where: Path, name: str) -> None:
    deadline = time.time() + 30
    while not list(where.glob(f"runs/*/{name}")):
        assert time.time() < deadline, f"no {name} appeared"
        time.sleep(0.02)


def starts(run: RunDirectory) -> int:
    return len(Path(str(run.path) + ".starts").read_text())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_dry_run_does_not_block_the_run(tmp_path: Path) -> None:
    assert finish(start(tmp_path, COMPLETES, "dry_run=true"))[0] == 0
    assert finish(start(tmp_path, COMPLETES))[0] == 0
    assert the_run(tmp_path).status()["status"] == "completed"


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of this process that starts a worker fails."""
    monkeypatch.delattr("agentrl.runner.start.launch")


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


def test_a_second_signal_kills(tmp_path: Path) -> None:
    process = start(tmp_path, WAITS, SAVING="60")
    run = wait_until_running(tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path, "*.signals")
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert run.status()["status"] == "interrupted"


def test_the_leader_of_several_processes_is_told_and_may_take_its_time(tmp_path: Path) -> None:
    process = start(tmp_path, WAITS, "hardware.processes=2", driver=TORCHRUN, SAVING="1")
    run = wait_until_running(tmp_path)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert run.status()["status"] == "interrupted"


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


def parallel(where: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Overrides and environment for two jobs at a time. joblib's processes use the stand-in for the worker too."""
    if find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra_joblib_launcher is not installed: pip install '.[sweepers]'")
    (where / "sitecustomize.py").write_text(
        "import os, sys\nif 'WORKER' in os.environ:\n"
        "    import agentrl.runner.launch, agentrl.runner.start\n"
        "    agentrl.runner.start.check_reach = lambda config: []\n"  # hardware=gpu, where there is none
        "    command = [sys.executable, '-c', os.environ['WORKER']]\n"
        "    agentrl.runner.launch.worker_command = lambda run, config: [*command, str(run.path)]\n"
    )
    return ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), {"PYTHONPATH": str(where), "TMPDIR": str(where)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_jobs_side_by_side_save_before_their_sweep_ends(tmp_path: Path, number: signal.Signals) -> None:
    overrides, environment = parallel(tmp_path)
    process = start(tmp_path, WAITS, "-m", "seed=0,1,2", *overrides, SAVING="1", **environment)
    deadline, running = time.time() + 60, 0
    while running < 2:
        assert time.time() < deadline
        found = [json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/*/status.json")]
        running = found.count("running")
        time.sleep(0.02)
    process.send_signal(number)
    code, _, err = finish(process)
    assert (code, "Traceback" in err) == (130, False)
    ends = [json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/*/status.json")]
    assert ends == ["interrupted", "interrupted"]
    (record,) = tmp_path.glob("runs/sweeps/*/sweep.json")
    states = sorted(job["state"] for job in json.loads(record.read_text())["jobs"])
    assert states == ["interrupted", "interrupted", "pending"]
    assert not (record.parent / "stopping").exists()


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
def test_a_failing_job_does_not_stop_a_sweep_but_fails_it(tmp_path: Path) -> None:
    worker = PRELUDE + "run.set_status('completed' if run.config().seed else 'failed'); sys.exit(not run.config().seed)"
    code, _, _ = finish(start(tmp_path, worker, "-m", "seed=0,1"))
    assert code == 1
    found = [json.loads(file.read_text())["status"] for file in tmp_path.glob("runs/*/*/status.json")]
    assert sorted(found) == ["completed", "failed"]


def test_a_run_in_progress_is_not_started_twice(tmp_path: Path) -> None:
    first = start(tmp_path, WAITS)
    run = wait_until_running(tmp_path)
    code, _, err = finish(start(tmp_path, WAITS))
    assert code == 2
    assert "is in use by process" in err
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


@pytest.fixture
def config(tmp_path: Path) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed_config(compose("config", overrides=[f"runs_dir={tmp_path}"]))


def test_command_and_environment(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "r")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch.worker_command(run, config) == [sys.executable, "-m", "agentrl.runner.worker", str(run.path)]
    environment = launch.worker_environment(run, config)
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert "OMP_NUM_THREADS" not in environment  # all cores
    config.hardware.threads = 2
    assert launch.worker_environment(run, config)["OMP_NUM_THREADS"] == "2"
    config.hardware.processes = 2
    command: list[Any] = launch.worker_command(run, config)
    assert command[2] == "torch.distributed.run"
    assert "--nproc_per_node=2" in command
    assert command[-3:] == ["-m", "agentrl.runner.worker", str(run.path)]
    assert launch.worker_environment(run, config)["ACCELERATE_USE_CPU"] == "true"
    config.hardware.accelerate_config = "fsdp.yaml"
    command = launch.worker_command(run, config)
    assert command[2] == "accelerate.commands.launch"
    assert {"--num_processes=2", "--config_file=fsdp.yaml"} <= set(command)
    config.hardware.accelerate_config = "zero3"
    (file,) = [word.partition("=")[2] for word in launch.worker_command(run, config) if "--config_file" in word]
    assert yaml.safe_load(Path(file).read_text())["deepspeed_config"]["zero_stage"] == 3
    config.hardware.accelerate_config = "ddp"
    assert launch.worker_command(run, config)[2] == "torch.distributed.run"
    config.hardware.processes = 1
    assert launch.worker_command(run, config)[2] == "torch.distributed.run"
    config.hardware.accelerate_config = "fsdp.yaml"  # DeepSpeed offloads on a single GPU too
    assert {"--num_processes=1", "--config_file=fsdp.yaml"} <= set(launch.worker_command(run, config))


def test_each_machine_starts_its_own_processes(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, hardware = RunDirectory(tmp_path / "r"), config.hardware
    hardware.processes, hardware.nodes, hardware.node_rank, hardware.rendezvous = 4, 2, 1, "machine0:29500"
    command = set(launch.worker_command(run, config))
    assert {"--nproc_per_node=2", "--nnodes=2", "--node_rank=1"} <= command
    assert {"--master_addr=machine0", "--master_port=29500"} <= command
    hardware.accelerate_config = "fsdp2"
    command = set(launch.worker_command(run, config))
    assert {"--num_processes=4", "--num_machines=2", "--machine_rank=1", "--same_network"} <= command
    assert {"--main_process_ip=machine0", "--main_process_port=29500"} <= command
    hardware.processes, hardware.device = 2, "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == "3"  # one process here


def test_where_machines_meet_is_no_part_of_a_run(tmp_path: Path) -> None:
    given = ("hardware.processes=2", "hardware.nodes=2", "hardware.node_rank=0", "hardware.rendezvous=a:1")
    config = composed(f"runs_dir={tmp_path}", *given)
    run = RunDirectory.create(config)
    assert run is not None
    saved = run.config().hardware
    assert (saved.nodes, saved.node_rank, saved.rendezvous) == (2, None, None)
    assert run_path(composed(f"runs_dir={tmp_path}", "hardware.processes=2")) == run.path


def test_one_process_sees_one_gpu(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "r")
    config.hardware.device = "cuda"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == "0"
    for given, seen in (("3,5", "3"), ("GPU-8a,GPU-9b", "GPU-8a"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == seen
    assert launch.worker_environment(run, config, ["7"])["CUDA_VISIBLE_DEVICES"] == "7"
    config.hardware.processes = 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == "3,5"


LIBRARIES = ("vllm", "wandb", "trl", "datasets", "torch", "transformers", "accelerate", "agentrl", "rich", "yaml")


def test_a_folder_or_file_named_like_a_library_does_not_break_the_start(config: Config, tmp_path: Path) -> None:
    for name in LIBRARIES:
        (tmp_path / name).mkdir()
        if name != "vllm":  # a bare folder would be imported if a library is not installed
            (tmp_path / name / "__init__.py").write_text("raise SystemExit(f'{__file__} was imported')")
    (tmp_path / "json.py").write_text("raise SystemExit(f'{__file__} was imported')")
    run = RunDirectory(tmp_path / "r")
    looks = (
        "import runpy, sys, importlib.util as u, agentrl.store.run, yaml, json; "
        "sys.exit(u.find_spec('vllm') is not None or any(not p for p in sys.path))"
    )
    for processes in (1, 2):
        config.hardware.processes = processes
        [*interpreter, module, name, path] = launch.worker_command(run, config)
        assert (module, name, path) == ("-m", "agentrl.runner.worker", str(run.path))
        environment = launch.worker_environment(run, config)
        done = subprocess.run(
            [interpreter[0], "-c", looks], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
