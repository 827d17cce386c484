"""The worker of a run: it reads the run directory's configuration, trains, evaluates, and writes a summary there.

`agentrl.runner.launch` starts it as `python -m agentrl.runner.worker RUN_DIR`, on every rank if there are several. Exit
status: 0 completed, 2 a mistake that the user can mend, 130 interrupted, anything else a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from rich.console import Console
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.utils import logging as transformers_logging

from agentrl.benches import load_bench
from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.load import load_config
from agentrl.config.schema import Config
from agentrl.core.bench import remarks_of
from agentrl.core.console import STOPPING, RunConsole
from agentrl.core.engine import Decoding, RolloutEngine
from agentrl.core.errors import UserError
from agentrl.core.judge import Judge
from agentrl.core.signals import stop_signals
from agentrl.core.stop import CommonError, StopRequest
from agentrl.core.streams import keep_streams
from agentrl.evaluation.evaluate import Interrupted, evaluate
from agentrl.evaluation.results import Item, count_missing_items, summarise, summarise_groups
from agentrl.judges.build import build_judge
from agentrl.models.adapters import check_lora
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.report.plots import plot_run
from agentrl.report.table import print_result, sampling_text
from agentrl.rollout.endpoint import EndpointEngine
from agentrl.rollout.tokens import local_engine
from agentrl.runner.launch import die_with_launcher, is_direct
from agentrl.runner.meeting import introduce, meet
from agentrl.scoring.choose import check_engine
from agentrl.store import checkpoints
from agentrl.store.redact import mask_streams
from agentrl.store.run import RunDirectory
from agentrl.store.trouble import explain_trouble
from agentrl.traces.files import make_lookup, read_traces
from agentrl.tracking.base import Tracker
from agentrl.tracking.tracker import track_run
from agentrl.trainers.build import build_trainer, final_engine, keep_fitting, rl_trainer
from agentrl.trainers.sharding import load_trained

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


def is_leader() -> bool:
    """Check whether this process writes the run's files; true if there is only one process."""
    return int(os.environ.get("RANK", "0")) == 0


def _fail(run: RunDirectory, message: str, code: int) -> int:
    print(f"agentrl: error: {message}" if code == 2 else message, file=sys.stderr)
    try:
        if run.status()["status"] != "failed":  # another process failed first, and this one only because of it
            run.set_status("failed", error=message)
    except UserError as error:
        print(f"agentrl: error: {error}", file=sys.stderr)
    return code


def _warn(message: str) -> None:
    print(f"agentrl: warning: {message}", file=sys.stderr)


def _catch_signals(stop: StopRequest) -> None:
    def request(number: int, _: FrameType | None) -> None:
        stop.signal = number

    for number in stop_signals():
        signal.signal(number, request)


def _work(run: RunDirectory, stop: StopRequest, ending: ExitStack) -> bool:
    """Do everything between configuration and summary; return False if a signal ended it early.

    Whatever must know how the run ended is put on `ending`.
    """
    started = time.perf_counter()
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
            work = _evaluate_only if isinstance(config.algo, Evaluate) else _train_and_evaluate
            result = work(config, run, stop, console, tracker)
        except Interrupted:
            return False
        if is_leader():
            summary = build_summary(config, result, round(time.perf_counter() - started, 1))
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


@dataclass
class Result:
    """What a run leaves behind besides its files."""

    solve_metric: str
    after: list[Item]
    before: list[Item] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    judge: dict[str, Any] | None = None  # counts of a judge's verdicts, and their cost
    missing: dict[str, int] = field(default_factory=dict)  # items that an endpoint did not play, by reason
    # sampling settings that an endpoint was sent, and those that it chose itself
    sampling: dict[str, Any] | None = None


def count_verdicts(judge: Judge | None) -> dict[str, float] | None:
    """Return what all processes together asked a judge (see `Judge.counts`); all of them must call this together."""
    if judge is None:
        return None
    counts: list[dict[str, float]] = gather_object([judge.counts()])
    return {name: sum(one[name] for one in counts) for name in counts[0]}


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
        "eval": summarise(result.before, result.after, result.solve_metric),
        "by": summarise_groups(result.before, result.after, result.solve_metric),
    }


def _evaluate_only(
    config: Config, run: RunDirectory, stop: StopRequest, console: RunConsole, tracker: Tracker
) -> Result:
    """algo=eval: evaluate a model that is not trained here, loaded or behind an endpoint."""
    console.say(f"loading the tasks of {config.bench.name}")
    bench = load_bench(config.bench, config.sandbox)
    judge = build_judge(config, str(run.path), config.hardware.device)
    tasks = bench.tasks("test", config.eval.limit, config.seed)
    for remark in remarks_of(bench):
        console.say(remark)
    engine: RolloutEngine
    endpoint: EndpointEngine | None = None
    if config.algo.endpoint.base_url is not None:
        engine = endpoint = EndpointEngine(config)
        where = "behind an endpoint"
    else:
        chat = load_chat(config.model, needs_of(tasks))
        tasks = keep_fitting(chat, tasks, config, "test")
        console.say(f"loading {config.model.path}")
        model = load_model(config.model)
        engine = local_engine(config, chat, model)
        where = f"{model.num_parameters():,} parameters"
    console.say(f"eval of {config.model.name} ({where}) on {bench.name}: {len(tasks)} tasks, {run.path}")
    items = evaluate(engine, bench, tasks, config.eval, run, "after", console, stop, judge)
    result = Result(bench.solve_metric, items, judge=count_verdicts(judge))
    if endpoint is not None:
        result.missing = count_missing_items(run.records(run.eval_dir / "after.jsonl"))
        result.sampling = endpoint.sampling(Decoding(config.eval.temperature, config.eval.top_p))
        if result.sampling is None and run.summary_path.exists():  # nothing new was played: the earlier settings stand
            result.sampling = json.loads(run.summary_path.read_text(encoding="utf-8")).get("sampling")
        if result.sampling is not None:
            console.say(f"sampling: {sampling_text(result.sampling)}")
    return result


def _train_and_evaluate(
    config: Config, run: RunDirectory, stop: StopRequest, console: RunConsole, tracker: Tracker
) -> Result:
    """Do everything between configuration and trained model. Raise Interrupted if a signal ended it early."""
    if config.algo.adapts:
        check_lora(config.model)
    check_engine(config.trainer.engine, config.model)
    console.say(f"loading the tasks of {config.bench.name}")
    bench = load_bench(config.bench, config.sandbox)
    expert_trace = bench.expert_trace if config.traces is None else make_lookup(read_traces(Path(config.traces)))
    judge = build_judge(config, str(run.path), config.hardware.device)
    trains = config.algo.trains  # otherwise the run only evaluates twice
    train_tasks = bench.tasks("train") if trains else []
    test_tasks = bench.tasks("test", config.eval.limit, config.seed)
    chat = load_chat(config.model, needs_of(train_tasks + test_tasks))
    train_tasks = keep_fitting(chat, train_tasks, config, "training") if trains else []
    test_tasks = keep_fitting(chat, test_tasks, config, "test")
    if (trainer_class := rl_trainer(config.algo)) is not None:
        trainer_class.check_tasks(config, train_tasks)
    console.say(f"loading {config.model.path}")
    model = load_model(config.model)
    console.say(
        f"{config.algo.name} on {bench.name}: {len(train_tasks)} training and {len(test_tasks)} test tasks, "
        f"{model.num_parameters():,} parameters, seed {config.seed}, {run.path}"
    )
    tasks = train_tasks or test_tasks
    trainer, engine = build_trainer(config, run, bench, chat, model, tasks, stop, console, judge, expert_trace)
    if trainer is not None:
        tracker.attach(trainer)
        if config.model.lora.enabled:
            console.say(describe_adapters(trainer.model))
    # One process looks, because it moves damaged checkpoints aside; all use what it found.
    found = [checkpoints.find_latest(run.checkpoints_dir, _warn) if is_leader() else None]
    checkpoint = broadcast_object_list(found)[0]
    result = Result(bench.solve_metric, after=[])
    # A resumed run was evaluated before it trained; its file is read again.
    if config.eval.before:
        result.before = evaluate(engine, bench, test_tasks, config.eval, run, "before", console, stop, judge)
    if trainer is not None and not train(trainer, run, config, checkpoint, console):
        raise Interrupted
    if config.eval.after:
        engine = final_engine(config, engine, model, chat)
        result.after = evaluate(engine, bench, test_tasks, config.eval, run, "after", console, stop, judge)
    if trainer is not None:
        trainer.save_model(str(run.path / "model"))
        if is_leader():
            chat.save(run.path / "model")
        result.steps, result.tokens = trainer.state.global_step, int(trainer.state.num_input_tokens_seen)
    result.judge = count_verdicts(judge)
    return result


def describe_adapters(model: torch.nn.Module) -> str:
    """Return a text that says how many parameters the adapters have."""
    every = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"adapters: {trained:,} of {every:,} parameters are trained ({trained / every:.2%})"


def train(
    trainer: Trainer,
    run: RunDirectory,
    config: Config,
    checkpoint: Path | None,
    console: RunConsole,
) -> bool:
    """Train from `checkpoint` or the start; return False if a signal stopped it. Equal seeds give equal metrics."""
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    if is_leader():
        run.truncate_after(step)
    if checkpoint:
        console.say(f"resuming from {checkpoint}")
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # transformers would make one more update before it stops
            load_trained(trainer, checkpoint)
            trainer.state = state
            return True
    # Random numbers drawn by evaluation must not change training; a checkpoint then restores its own random states.
    set_seed(config.seed, device_specific=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    console.finish("train")
    return trainer.state.global_step >= trainer.state.max_steps


def _quiet_libraries() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    keep_streams()
    mask_streams()
    _quiet_libraries()
    arguments: list[Any] = sys.argv[1:]
    sys.exit(main(Path(arguments[0])))
