"""The worker of a run: a process that reads the run directory's configuration, does the work and writes a summary.

`agentrl.runner.launch` starts it as `python -m agentrl.runner.worker RUN_DIR`, on every rank if there are several. Exit
status: 0 completed, 2 a mistake that the user can mend, 130 interrupted, anything else a crash.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
import traceback
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from rich.console import Console

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.load import load_config
from agentrl.config.schema import Config
from agentrl.core.console import STOPPING, RunConsole
from agentrl.core.errors import UserError
from agentrl.core.quiet import quiet_libraries
from agentrl.core.signals import stop_signals
from agentrl.core.stop import CommonError, Interrupted, StopRequest
from agentrl.core.streams import keep_streams
from agentrl.evaluation.results import summarise, summarise_groups
from agentrl.report.plots import plot_run
from agentrl.report.table import print_result
from agentrl.runner.launch import die_with_launcher, is_direct
from agentrl.runner.meeting import introduce, meet
from agentrl.runner.work import Result, evaluate_only, is_leader, train_and_evaluate
from agentrl.store import checkpoints
from agentrl.store.redact import mask_streams
from agentrl.store.run import RunDirectory
from agentrl.store.trouble import explain_trouble
from agentrl.tracking.tracker import track_run

# How long processes wait for each other, e.g. for the longest episode, a judge, a checkpoint. torch's default for GPUs
# is ten minutes.
PATIENCE = timedelta(hours=12)


def main(run_path: Path) -> int:
    """Do the run; return the exit status."""
    run = RunDirectory(run_path)
    stop = StopRequest()
    _catch_signals(stop)
    introduce(run)
    with run.lock() if is_leader() else nullcontext(), ExitStack() as ending:
        try:
            if is_leader():
                run.set_status("running", pid=os.getpid(), host=socket.gethostname())
            finished = _work(run, stop, ending)
        except UserError as error:
            if isinstance(error, CommonError) and not is_leader():
                return 2  # the leader says it
            return _fail(run, str(error), 2)
        except (Exception, SystemExit) as error:  # SystemExit comes from a library or from a user's file
            message = explain_trouble(error, run.path)  # before space is freed: the disk may be full
            if is_leader():  # frees space for the status
                shutil.rmtree(checkpoints.writing_folder(run.checkpoints_dir), ignore_errors=True)
            if message is None:
                return _fail(run, traceback.format_exc(), 1)  # the traceback is recorded; nothing is swallowed
            return _fail(run, message, 2)
        if is_leader():
            run.set_status("completed" if finished else "interrupted")
        PartialState().wait_for_everyone()  # the launchers of other machines read the status
        if is_leader() and not finished:
            print(f"interrupted; the same command resumes from {run.path}", file=sys.stderr)
            # torchrun would print a long report of a failure; the launcher reads the status.
            return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 130
    return 0


def _fail(run: RunDirectory, message: str, code: int) -> int:
    print(f"agentrl: error: {message}" if code == 2 else message, file=sys.stderr)
    try:
        if run.status()["status"] != "failed":  # another process failed first, and this one only because of it
            run.set_status("failed", error=message)
    except UserError as error:
        print(f"agentrl: error: {error}", file=sys.stderr)
    return code


def _catch_signals(stop: StopRequest) -> None:
    def request(number: int, _: FrameType | None) -> None:
        stop.signal = number

    for number in stop_signals():
        signal.signal(number, request)


def _work(run: RunDirectory, stop: StopRequest, ending: ExitStack) -> bool:
    """Do everything between configuration and summary; return False if a signal ended it early.

    Whatever must know how the run ended is put on `ending`.
    """
    started, before = time.perf_counter(), run.records(run.timing_path)
    config = load_config(run.config_path)
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    set_seed(config.seed)
    if not is_direct(config):
        die_with_launcher()
    _check_devices(config)
    started_processes = PartialState(cpu=config.hardware.device == "cpu", timeout=PATIENCE).num_processes
    if started_processes != config.hardware.processes:
        raise UserError(
            f"hardware.processes={config.hardware.processes}, but {started_processes} process(es) were started; set "
            "the same number in the file of hardware.accelerate_config"
        )
    if config.hardware.nodes > 1:
        config = meet(run, config)
    tracker = ending.enter_context(track_run(config, run))
    stopping = lambda: STOPPING if stop.signal else ""  # noqa: E731
    with RunConsole(None if is_leader() else Console(quiet=True), stopping) as console:
        try:
            work = evaluate_only if isinstance(config.algo, Evaluate) else train_and_evaluate
            result = work(config, run, stop, console, tracker)
        except Interrupted:
            return False
        if is_leader():
            earlier = spent_before(before, run.records(run.timing_path))
            summary = build_summary(config, result, round(earlier + time.perf_counter() - started, 1))
            run.write_json(run.summary_path, summary)
            plot_run(run.read_metrics(), run.plots_dir)
            print_result(summary, console.console)
    return True


def _check_devices(config: Config) -> None:
    """Raise UserError if there are fewer GPUs than processes: transformers would fall back to the CPU or crash."""
    hardware, wanted = config.hardware, config.hardware.processes_here
    remote = isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None
    if hardware.device == "cuda" and not remote and (found := torch.cuda.device_count()) < wanted:
        raise UserError(
            f"hardware={hardware.name} needs {wanted} GPU(s), PyTorch {torch.__version__} sees {found}; "
            "lower hardware.processes, install a PyTorch that fits the driver, or set hardware=cpu"
        )


def spent_before(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float:
    """Return the seconds of the updates that an earlier process made and this one did not repeat.

    `before` and `after` are the records of timing.jsonl when this process began and now.
    """
    return float(sum(record["seconds"] for record in before if record in after))


def build_summary(config: Config, result: Result, wall_s: float) -> dict[str, Any]:
    """Return the content of summary.json."""
    return {
        "status": "completed",
        "algo": config.algo.name,
        "model": config.model.name,
        "bench": config.bench.name,
        "seed": config.seed,
        "steps": result.steps,
        "wall_s": wall_s,
        "tokens": {"seen": result.tokens},
        "solve_metric": result.solve_metric,
        **({} if result.judge is None else {"judge": result.judge}),
        **({} if result.sampling is None else {"sampling": result.sampling}),
        **({"missing": {"items": sum(result.missing.values()), "reasons": result.missing}} if result.missing else {}),
        **({"too_long": result.too_long} if result.too_long else {}),
        "eval": summarise(result.before, result.after, result.solve_metric),
        "by": summarise_groups(result.before, result.after, result.solve_metric),
    }


if __name__ == "__main__":
    keep_streams()
    mask_streams()
    quiet_libraries()
    arguments: list[Any] = sys.argv[1:]
    sys.exit(main(Path(arguments[0])))
