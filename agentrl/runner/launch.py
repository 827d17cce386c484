"""Start the worker of a run directory as a child process, and wait until it ends.

A child process frees accelerator memory and tracker state between the jobs of a sweep. It has its own session, so
Ctrl-C reaches it only through this process, and it can save a checkpoint before it stops.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import IO

from agentrl.config.accelerate_files import accelerate_file
from agentrl.config.schema import Config
from agentrl.core.console import STOPPING
from agentrl.core.errors import UserError
from agentrl.core.signals import SWEPT_BY, stop_signals
from agentrl.runner.rendezvous import wait_for_machines
from agentrl.store.run import LOCK_HELD, RunDirectory, is_gone

COMPLETED, USER_ERROR, INTERRUPTED = 0, 2, 130  # exit codes of the worker; any other code is a crash
ENDS = {"completed": COMPLETED, "interrupted": INTERRUPTED}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# For glibc: keep freed memory. On a CPU the large tensors of a real model are otherwise given back to the system and
# fetched anew all the time, which took up to a quarter of the processors' time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
PR_SET_PDEATHSIG = 1
LOOK_S = 1.0  # seconds between two looks at a torchrun
LINGER_S = 30.0  # seconds that a torchrun may outlive the training


def launch(
    run: RunDirectory,
    config: Config,
    lock: int | None,
    output: IO[str] | None = None,
    gpus: list[str] | None = None,
) -> int:
    """Train what `run` describes; return the worker's exit code, or 128 + n if signal n killed it.

    The worker inherits `lock`, the file descriptor of the run's lock: if this process is killed, the run stays locked
    until the worker has ended too. It prints to the file `output` instead of the terminal, if it is given. `gpus` are
    the GPUs that it uses.

    Raises UserError if the machines of the run cannot meet.
    """
    leads = config.hardware.rank_here == 0  # of several machines, the first one records how the run ends
    run.node_path(config.hardware.rank_here).unlink(missing_ok=True)
    found = run.status()
    before = found.get("pid")
    wait_for_machines(config.hardware)
    process = subprocess.Popen(
        worker_command(run, config),
        env=worker_environment(run, config, gpus),
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
        preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
    )

    def listener() -> int:
        """Return the process that saves a checkpoint when asked. torchrun would kill its processes after 30 s."""
        if not leads:
            return run.process_of_node(config.hardware.rank_here) or process.pid
        leader = run.status().get("pid")
        return process.pid if is_direct(config) or leader in (None, before) else int(leader)

    def shown_by_worker() -> bool:
        known = leads and run.status().get("pid") not in (None, before)
        return output is None and sys.stdout.isatty() and known

    code, asked = _wait(process, listener, shown_by_worker, None if is_direct(config) else _Lingering(run))
    with suppress(ProcessLookupError, PermissionError):  # no process is left in the group (macOS raises the latter)
        os.killpg(process.pid, signal.SIGKILL)  # helper processes that a crashed worker left behind
    killed = code > 128
    if not is_direct(config):  # torchrun and accelerate turn every other exit code into 1
        state = run.status()["status"]
        code = ENDS.get(state, code) if run.status() != found else code  # else no process came so far as to write one
        killed = killed or state in ("created", "running")
    if asked and killed:
        code = INTERRUPTED  # the signal came before the worker could catch it
    if code != COMPLETED and leads:
        _record_end(run, code, config)
    return code


def is_direct(config: Config) -> bool:
    """Check whether the worker is a child of this process, and not of torchrun or accelerate."""
    hardware = config.hardware
    return hardware.processes == 1 and hardware.accelerate_config is None


def worker_command(run: RunDirectory, config: Config) -> list[str]:
    """Return the command that starts the worker.

    It starts one process, or `hardware.processes` of them through torchrun, or through accelerate if
    `hardware.accelerate_config` is a file.
    """
    hardware, worker = config.hardware, ["-m", "agentrl.runner.worker", str(run.path)]
    if is_direct(config):
        return [sys.executable, *worker]
    host, _, port = (hardware.rendezvous or f"127.0.0.1:{_free_port()}").rpartition(":")
    if (file := accelerate_file(hardware.accelerate_config)) is None:
        # `accelerate launch --cpu` always starts one process; torchrun starts as many as it is told.
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={hardware.processes_here}"]
        command += [f"--nnodes={hardware.nodes}", f"--node_rank={hardware.rank_here}"]
        command += [f"--master_addr={host}", f"--master_port={port}"]
        return command + worker
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={hardware.processes}"]
    command += [f"--num_machines={hardware.nodes}", f"--machine_rank={hardware.rank_here}"]
    command += ["--same_network", f"--main_process_ip={host}", f"--main_process_port={port}"]
    command.append(f"--config_file={file}")
    if hardware.threads is not None:
        command.append(f"--num_cpu_threads_per_process={hardware.threads}")
    return command + worker


def worker_environment(run: RunDirectory, config: Config, gpus: list[str] | None = None) -> dict[str, str]:
    """Return this process's environment with threads limited, and without telemetry and advertisements of libraries."""
    environment = dict(os.environ)
    for name in ("HYDRA_FULL_ERROR", SWEPT_BY):  # these belong to the command line
        environment.pop(name, None)
    environment |= {
        LOCK_HELD: str(run.path),
        # a folder in the current directory must not be imported as a library: vllm, wandb, datasets
        "PYTHONSAFEPATH": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.hardware.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
        for name, value in KEEP_MEMORY.items():
            environment.setdefault(name, value)
        environment.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, if installed, warns when it looks for a GPU
    elif gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    elif config.hardware.processes_here == 1:
        # transformers would use every GPU that it sees for one model, by a method that TRL refuses.
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if config.hardware.threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(config.hardware.threads))
    return environment


def _say_killed() -> None:
    """Say that the run was killed. On a terminal, show the cursor again, which the killed bars have hidden."""
    cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    text = "agentrl: killed without saving; the same command continues from the last checkpoint"
    print(f"{cursor}{text}", file=sys.stderr, flush=True)


class _Lingering:
    """Returns True once torchrun has outlived the training for LINGER_S: it would wait minutes for a lost machine."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._process: tuple[str, str] | None = None  # number and host of the first training process
        self._ended: float | None = None

    def __call__(self) -> bool:
        try:
            status = self._run.status()
        except UserError:  # cannot be read now, which ends no run
            return False
        if status["status"] in ("created", "running"):
            self._process = (str(status["pid"]), str(status["host"])) if {"pid", "host"} <= status.keys() else None
            return False
        if self._process is None or not is_gone(*self._process):
            return False
        self._ended = self._ended or time.monotonic()
        return time.monotonic() - self._ended > LINGER_S


def _wait(
    process: subprocess.Popen[bytes],
    listener: Callable[[], int],
    shown_by_worker: Callable[[], bool],
    lingers: Callable[[], bool] | None,
) -> tuple[int, bool]:
    """Return the exit code, and whether a signal asked to stop. `listener` gets the first signal; a second kills.

    The process is also killed once `lingers()` returns True.

    If the worker's bars are on this terminal, the worker itself says that it stops, because they would overwrite our
    text.
    """
    asked = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _say_killed()
            return
        asked = True
        with suppress(ProcessLookupError):
            os.kill(listener(), signal.SIGTERM)  # SIGINT would print a traceback while the worker still imports
        if not shown_by_worker():
            print(STOPPING, file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, forward) for number in stop_signals()}
    try:
        while lingers is not None and process.poll() is None:
            if lingers():
                print("agentrl: the training has ended here, another machine is lost", file=sys.stderr, flush=True)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
        code = process.wait()  # continues to wait after a handled signal
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return (128 - code if code < 0 else code), asked


def _record_end(run: RunDirectory, code: int, config: Config) -> None:
    """Record the end of a worker that could not do so itself: it was killed, or stopped before it began."""
    if run.status()["status"] not in ("created", "running"):
        return
    with suppress(UserError):  # a full disk may be the reason of its end; its message has been printed
        if code == INTERRUPTED:
            run.set_status("interrupted")
        else:
            cause = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
            if code == 128 + signal.SIGKILL:
                cause += " (if memory ran out, lower trainer.tokens_per_batch or eval.batch)"
            if config.hardware.nodes > 1:
                nodes, meeting = config.hardware.nodes, config.hardware.rendezvous
                cause += f" (did all hardware.nodes={nodes} machines start, and do they reach {meeting}?)"
            run.set_status("failed", error=f"the worker ended without a record: {cause}")


def _die_with_parent() -> Callable[[], None]:
    """Return a function for the child to call before exec: it makes the kernel send SIGTERM to the child when we die.

    So kill -9 on this process leaves no worker running. The child ignores SIGUSR1, because batch systems may send it
    to every process of a job. torchrun would end, and its processes with it, before they have saved.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a worker sets a handler of its own
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # this process died before the call above
            os.kill(os.getpid(), signal.SIGTERM)

    return arrange


def die_with_launcher() -> None:
    """Make the kernel kill this torchrun worker with its launcher; a kill of our group misses its own session."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
