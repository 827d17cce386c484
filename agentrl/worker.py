"""The worker: reads one run directory's configuration, trains, evaluates, and leaves a summary there.

Started by `agentrl.launch` as `python -m agentrl.worker RUN_DIR`, on every rank where there are several.
Exit status: 0 completed, 2 a mistake the user can mend, 130 interrupted, anything else a crash.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.utils import logging as transformers_logging

from agentrl import checkpoints
from agentrl.benches import load_bench
from agentrl.config.load import load_config
from agentrl.config.schema import Config
from agentrl.console import RunConsole
from agentrl.errors import UserError
from agentrl.evaluate import Interrupted, Item, evaluate, summarise, summarise_groups
from agentrl.judges.build import build_judge
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.redact import mask_streams
from agentrl.report.plots import plot_run
from agentrl.report.table import print_result
from agentrl.run import RunDirectory
from agentrl.trainers.build import build_trainer, final_engine, fitting
from agentrl.trainers.callbacks import StopRequest
from agentrl.trouble import trouble


def main(run_path: Path) -> int:
    """Do the run; returns the exit status."""
    run = RunDirectory(run_path)
    stop = StopRequest()
    _catch_signals(stop)
    if not is_leader():
        _work(run, stop)
        return 0
    with run.lock():
        try:
            run.set_status("running", pid=os.getpid(), host=socket.gethostname())
            finished = _work(run, stop)
        except UserError as error:
            return _fail(run, str(error), 2)
        except Exception as error:
            shutil.rmtree(checkpoints.writing_folder(run.checkpoints_dir), ignore_errors=True)  # room for the status
            message = trouble(error, run.path)
            if message is None:
                return _fail(run, traceback.format_exc(), 1)  # the traceback is the record; nothing is swallowed
            return _fail(run, message, 2)
        if not finished:
            run.set_status("interrupted")
            print(f"interrupted; the same command resumes from {run.path}", file=sys.stderr)
            return 130
        run.set_status("completed")
    return 0


def is_leader() -> bool:
    """Whether this process writes the run's files; true where there is only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _fail(run: RunDirectory, message: str, code: int) -> int:
    print(f"agentrl: error: {message}" if code == 2 else message, file=sys.stderr)
    try:
        run.set_status("failed", error=message)
    except UserError as error:
        print(f"agentrl: error: {error}", file=sys.stderr)
    return code


def _warn(message: str) -> None:
    print(f"agentrl: warning: {message}", file=sys.stderr)


def _catch_signals(stop: StopRequest) -> None:
    def request(number: int, _: FrameType | None) -> None:
        stop.signal = number

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request)


def _work(run: RunDirectory, stop: StopRequest) -> bool:
    """Everything between configuration and summary; False if a signal ended it early."""
    started = time.perf_counter()
    config = load_config(run.config_path)
    if config.hardware.threads is not None:
        torch.set_num_threads(config.hardware.threads)
    set_seed(config.seed)
    started_processes = PartialState(cpu=config.hardware.device == "cpu").num_processes
    if started_processes != config.hardware.processes:
        raise UserError(
            f"hardware.processes={config.hardware.processes}, but {started_processes} process(es) were started; let "
            "hardware.accelerate_config agree with it"
        )
    bench = load_bench(config.bench)
    judge = build_judge(config, str(run.path), config.hardware.device)
    train_tasks, test_tasks = bench.tasks("train"), bench.tasks("test", config.eval.limit, config.seed)
    chat = load_chat(config.model, needs_of(train_tasks + test_tasks))
    train_tasks = fitting(chat, train_tasks, config, "training")
    test_tasks = fitting(chat, test_tasks, config, "test")
    model = load_model(config.model)
    with RunConsole(None if is_leader() else Console(quiet=True)) as console:
        console.say(
            f"{config.algo.name} on {bench.name}: {len(train_tasks)} training and {len(test_tasks)} test tasks, "
            f"{model.num_parameters():,} parameters, seed {config.seed}, {run.path}"
        )
        trainer, engine = build_trainer(config, run, bench, chat, model, train_tasks, stop, console, judge)
        # One process looks, for it moves damaged ones aside; all use what it found.
        found = [checkpoints.latest(run.checkpoints_dir, _warn) if is_leader() else None]
        checkpoint = broadcast_object_list(found)[0]
        before: list[Item] = []
        after: list[Item] = []
        try:
            # A resumed run evaluated before it trained; its file is read back.
            if config.eval.before:
                before = evaluate(engine, bench, test_tasks, config.eval, run, "before", console, stop, judge)
            if trainer is not None and not train(trainer, run, config, checkpoint, console):
                return False
            if config.eval.after:
                engine = final_engine(config, engine, model, chat)
                after = evaluate(engine, bench, test_tasks, config.eval, run, "after", console, stop, judge)
        except Interrupted:
            return False
        if trainer is not None:
            trainer.save_model(str(run.path / "model"))
        if is_leader():
            if trainer is not None:
                chat.tokenizer.save_pretrained(run.path / "model")
            summary = {
                "status": "completed",
                "algo": config.algo.name,
                "model": config.model.name,
                "bench": config.bench.name,
                "seed": config.seed,
                "steps": trainer.state.global_step if trainer is not None else 0,
                "wall_s": round(time.perf_counter() - started, 1),
                "tokens": {"seen": int(trainer.state.num_input_tokens_seen) if trainer is not None else 0},
                "eval": summarise(before, after, bench.solve_metric),
                "by": summarise_groups(before, after, bench.solve_metric),
                **({} if judge is None else {"judge": judge.counts()}),
            }
            run.write_json(run.summary_path, summary)
            plot_run(run.read_metrics(), run.plots_dir)
            print_result(summary, console.console)
    return True


def train(
    trainer: Trainer,
    run: RunDirectory,
    config: Config,
    checkpoint: Path | None,
    console: RunConsole,
) -> bool:
    """Train from `checkpoint` or from the start; False if a signal stopped it. Equal seeds give equal metrics."""
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    if is_leader():
        run.truncate_after(step)
    if checkpoint:
        console.say(f"resuming from {checkpoint}")
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # transformers would make one more update before it noticed
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return True
    # What evaluation drew must not change training; a checkpoint restores its own states over this.
    set_seed(config.seed, device_specific=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    console.finish("train")
    return trainer.state.global_step >= trainer.state.max_steps


def _quiet_libraries() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    mask_streams()
    _quiet_libraries()
    arguments: list[Any] = sys.argv[1:]
    sys.exit(main(Path(arguments[0])))
