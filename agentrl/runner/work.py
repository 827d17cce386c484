"""The work of a run, from its configuration to evaluated items: load, train, evaluate.

`worker.py` calls it. Every process of a run does the same work, and one of them, the leader, writes the files.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from transformers import Trainer
from transformers.trainer_callback import TrainerState

from agentrl.benches import load_bench
from agentrl.config.schema import Config
from agentrl.core.bench import remarks_of
from agentrl.core.console import RunConsole
from agentrl.core.engine import Decoding, RolloutEngine
from agentrl.core.judge import Judge
from agentrl.core.stop import Interrupted, StopRequest
from agentrl.evaluation.evaluate import evaluate
from agentrl.evaluation.results import Item, count_missing_items
from agentrl.evaluation.tasks import load_tasks
from agentrl.judges.build import build_judge
from agentrl.models.adapters import check_lora
from agentrl.models.loading import load_chat, load_model, load_policy, needs_of
from agentrl.report.table import sampling_text
from agentrl.rollout.endpoint import EndpointEngine
from agentrl.rollout.tokens import local_engine
from agentrl.scoring.choose import check_engine
from agentrl.store import checkpoints
from agentrl.store.run import RunDirectory
from agentrl.traces.files import check_calls, make_lookup, read_traces
from agentrl.tracking.base import Tracker
from agentrl.trainers.build import build_trainer, final_engine, keep_fitting, rl_trainer
from agentrl.trainers.sharding import load_trained


def is_leader() -> bool:
    """Check whether this process writes the run's files; true if there is only one process."""
    return int(os.environ.get("RANK", "0")) == 0


def warn(message: str) -> None:
    print(f"agentrl: warning: {message}", file=sys.stderr)


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
    too_long: int = 0  # test items that are left out because their prompt exceeds rollout.max_prompt_tokens
    # sampling settings that an endpoint was sent, and those that it chose itself
    sampling: dict[str, Any] | None = None


def count_verdicts(judge: Judge | None) -> dict[str, float] | None:
    """Return what all processes together asked a judge (see `Judge.counts`); all of them must call this together."""
    if judge is None:
        return None
    counts: list[dict[str, float]] = gather_object([judge.counts()])
    return {name: sum(one[name] for one in counts) for name in counts[0]}


def evaluate_only(
    config: Config, run: RunDirectory, stop: StopRequest, console: RunConsole, tracker: Tracker
) -> Result:
    """algo=eval: evaluate a model that is not trained here, loaded or behind an endpoint."""
    console.say(f"loading the tasks of {config.bench.name}")
    bench = load_bench(config.bench, config.sandbox)
    judge = build_judge(config, str(run.path), config.hardware.device)
    tasks = load_tasks(bench, "test", config.eval.limit, config.seed)
    for remark in remarks_of(bench):
        console.say(remark)
    engine: RolloutEngine
    endpoint: EndpointEngine | None = None
    every = len(tasks)
    if config.algo.endpoint.base_url is not None:
        engine = endpoint = EndpointEngine(config)
        where = "behind an endpoint"
    else:
        chat = load_chat(config.model, needs_of(tasks))
        tasks = keep_fitting(chat, tasks, config, "test")
        console.say(f"loading {config.model.path}")
        model = load_policy(config.model)
        engine = local_engine(config, chat, model)
        where = f"{model.num_parameters():,} parameters"
    console.say(f"eval of {config.model.name} ({where}) on {bench.name}: {len(tasks)} tasks, {run.path}")
    items = evaluate(engine, bench, tasks, config.eval, run, "after", console, stop, judge)
    result = Result(bench.solve_metric, items, judge=count_verdicts(judge), too_long=every - len(tasks))
    if endpoint is not None:
        result.missing = count_missing_items(run.records(run.eval_dir / "after.jsonl"))
        result.sampling = endpoint.sampling(Decoding(config.eval.temperature, config.eval.top_p))
        if result.sampling is None and run.summary_path.exists():  # nothing new was played: the earlier settings stand
            result.sampling = json.loads(run.summary_path.read_text(encoding="utf-8")).get("sampling")
        if result.sampling is not None:
            console.say(f"sampling: {sampling_text(result.sampling)}")
    return result


def train_and_evaluate(
    config: Config, run: RunDirectory, stop: StopRequest, console: RunConsole, tracker: Tracker
) -> Result:
    """Do everything between configuration and trained model. Raise Interrupted if a signal ended it early."""
    if config.algo.adapts:
        check_lora(config.model)
    check_engine(config.trainer.engine, config.model)
    console.say(f"loading the tasks of {config.bench.name}")
    bench = load_bench(config.bench, config.sandbox)
    traces = {} if config.traces is None else read_traces(Path(config.traces))
    expert_trace = bench.expert_trace if config.traces is None else make_lookup(traces)
    judge = build_judge(config, str(run.path), config.hardware.device)
    trains = config.algo.trains  # otherwise the run only evaluates twice
    train_tasks = load_tasks(bench, "train") if trains else []
    test_tasks = load_tasks(bench, "test", config.eval.limit, config.seed)
    check_calls(traces, train_tasks)
    chat = load_chat(config.model, needs_of(train_tasks + test_tasks))
    train_tasks = keep_fitting(chat, train_tasks, config, "training") if trains else []
    every = len(test_tasks)
    test_tasks = keep_fitting(chat, test_tasks, config, "test")
    if (trainer_class := rl_trainer(config.algo)) is not None:
        trainer_class.check_tasks(config, train_tasks)
    console.say(f"loading {config.model.path}")
    model = load_model(config.model) if trains else load_policy(config.model)
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
    found = [checkpoints.find_latest(run.checkpoints_dir, warn) if is_leader() else None]
    checkpoint = broadcast_object_list(found)[0]
    result = Result(bench.solve_metric, after=[], too_long=every - len(test_tasks))
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
