"""Starts the worker of a run directory as a child process, and stays until it has ended.

A child frees accelerator memory and tracker state between the jobs of a sweep. It lives in its own session, so that
Ctrl-C reaches it once, through us, and it can save a checkpoint before it stops.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import IO

from agentrl.config.schema import Config
from agentrl.core.console import STOPPING
from agentrl.core.errors import UserError
from agentrl.core.signals import SWEPT_BY, stop_signals
from agentrl.store.run import LOCK_HELD, RunDirectory

COMPLETED, USER_ERROR, INTERRUPTED = 0, 2, 130  # exit codes of the worker; anything else is a crash
ENDS = {"completed": COMPLETED, "interrupted": INTERRUPTED}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PR_SET_PDEATHSIG = 1


def launch(run: RunDirectory, config: Config, output: IO[str] | None = None, gpus: list[str] | None = None) -> int:
    """Train what `run` describes; the worker's exit code, 128 + n if signal n killed it.

    What the worker prints goes to `output`, a file, instead of the terminal. `gpus` are those it is to use.

    Raises:
        UserError: another living process works on this run.
    """
    with run.lock() as lock:
        # The worker inherits the lock: should we be killed, the run stays locked until the worker has gone too.
        before = run.status().get("pid")
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
            """Who saves a checkpoint when asked: torchrun would kill its processes after 30 s, ready or not."""
            leader = run.status().get("pid")
            return process.pid if is_direct(config) or leader in (None, before) else int(leader)

        def shown_by_worker() -> bool:
            return output is None and sys.stdout.isatty() and run.status().get("pid") not in (None, before)

        code, asked = _wait(process, listener, shown_by_worker)
        with suppress(ProcessLookupError, PermissionError):  # nothing is left of the group (macOS: the latter)
            os.killpg(process.pid, signal.SIGKILL)  # helpers that a crashed worker left behind
        killed = code > 128
        if not is_direct(config):  # torchrun and accelerate turn every exit code but 0 into 1
            state = run.status()["status"]
            code, killed = ENDS.get(state, code), killed or state in ("created", "running")
        if asked and killed:
            code = INTERRUPTED  # the signal came before the worker listened for it
        if code != COMPLETED:
            _record_end(run, code)
        return code


def is_direct(config: Config) -> bool:
    """Whether the worker is our child, not one of torchrun or accelerate."""
    return config.hardware.processes == 1 and config.hardware.accelerate_config is None


def worker_command(run: RunDirectory, config: Config) -> list[str]:
    """One process, or as many as `hardware.processes` through torchrun, or accelerate where it has a configuration."""
    hardware, worker = config.hardware, ["-m", "agentrl.runner.worker", str(run.path)]
    if is_direct(config):
        return [sys.executable, *worker]
    if hardware.accelerate_config is None:
        # `accelerate launch --cpu` starts one process whatever it is told; torchrun does not.
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={hardware.processes}"]
        command.append(f"--master_port={_free_port()}")
        return command + worker
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={hardware.processes}"]
    command += ["--num_machines=1", f"--main_process_port={_free_port()}"]
    command.append(f"--config_file={os.path.expanduser(hardware.accelerate_config)}")
    if hardware.threads is not None:
        command.append(f"--num_cpu_threads_per_process={hardware.threads}")
    return command + worker


def worker_environment(run: RunDirectory, config: Config, gpus: list[str] | None = None) -> dict[str, str]:
    """Ours, with threads limited and with the libraries' telemetry and nagging off."""
    environment = dict(os.environ)
    for name in ("HYDRA_FULL_ERROR", SWEPT_BY):  # the command line's own
        environment.pop(name, None)
    environment |= {
        LOCK_HELD: str(run.path),
        "PYTHONSAFEPATH": "1",  # a folder of the current directory must not pass for a library: vllm, wandb, datasets
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.hardware.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    elif gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    elif config.hardware.processes == 1:
        # transformers would take all it sees for one model, by a method that TRL refuses.
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if config.hardware.threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(config.hardware.threads))
    return environment


def _say_killed() -> None:
    """On a terminal the killed bars have left the cursor hidden, in the middle of a line."""
    cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    text = "agentrl: killed without saving; the same command goes on from the last checkpoint"
    print(f"{cursor}{text}", file=sys.stderr, flush=True)


def _wait(
    process: subprocess.Popen[bytes], listener: Callable[[], int], shown_by_worker: Callable[[], bool]
) -> tuple[int, bool]:
    """Exit code, and whether we were asked to stop. The first such signal is passed to `listener`; a second kills.

    Where the worker's bars are on this terminal, it says itself that it stops: they would paint over what we print.
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
            os.kill(listener(), signal.SIGTERM)  # SIGINT would be a traceback while the worker is still importing
        if not shown_by_worker():
            print(STOPPING, file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, forward) for number in stop_signals()}
    try:
        code = process.wait()  # resumes after a handled signal
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return (128 - code if code < 0 else code), asked


def _record_end(run: RunDirectory, code: int) -> None:
    """The end of a worker that could not write it down itself: killed outright, or stopped before it began."""
    if run.status()["status"] not in ("created", "running"):
        return
    with suppress(UserError):  # a full disk may be why it died; its message has been printed
        if code == INTERRUPTED:
            run.set_status("interrupted")
        else:
            cause = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
            if code == 128 + signal.SIGKILL:
                cause += " (Linux does so when memory runs out: then lower trainer.tokens_per_batch or eval.batch)"
            run.set_status("failed", error=f"the worker ended without a record: {cause}")


def _die_with_parent() -> Callable[[], None]:
    """For the child, before exec: the kernel sends it SIGTERM when we die, so kill -9 leaves no orphan training."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # we died before the call above
            os.kill(os.getpid(), signal.SIGTERM)

    return arrange


def die_with_launcher() -> None:
    """For a worker of torchrun's: it has a session of its own, so what kills our group would leave it behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
