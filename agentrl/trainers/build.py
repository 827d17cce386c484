"""Builds the trainer of a run: chooses the training tasks, the trainer class of the algorithm, and the callbacks."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.trainer_callback import TrainerCallback

from agentrl.chat.format import ChatFormat
from agentrl.config.algos.grpo import CustomAlgo
from agentrl.config.algos.sides import SplitSoftmax
from agentrl.config.schema import Config
from agentrl.config.schema import Trainer as Settings
from agentrl.core.bench import Bench, ExpertTraces, Task, TwoSided, has_own_reward, reference_calls
from agentrl.core.console import RunConsole
from agentrl.core.custom import load_attribute
from agentrl.core.engine import RolloutEngine
from agentrl.core.errors import UserError
from agentrl.core.imports import import_by_name
from agentrl.core.judge import Judge
from agentrl.core.stop import StopRequest
from agentrl.models.adapters import lora_config
from agentrl.rewards.turns import COMPARING
from agentrl.rollout.split_softmax import SplitSoftmaxEngine
from agentrl.rollout.tokens import local_engine
from agentrl.rollout.transformers_sampler import TransformersSampler
from agentrl.store.run import RunDirectory
from agentrl.trainers.arguments import grpo_arguments, plan_batches
from agentrl.trainers.callbacks import Checkpoints, Record
from agentrl.trainers.faults import Watch
from agentrl.trainers.grpo import AgentGRPOTrainer
from agentrl.trainers.parts import Parts
from agentrl.trainers.rollout_log import RolloutLog
from agentrl.trainers.sharding import check_sharding
from agentrl.trainers.traced import TracedTrainer


def rl_trainer(algo: Any) -> type[AgentGRPOTrainer] | None:
    """Return the trainer class of an algorithm that learns from groups of rollouts, or None for other algorithms.

    Raises:
        UserError: the user's own file has no subclass of AgentGRPOTrainer named Trainer.
    """
    if not algo.rollouts:
        return None
    if not isinstance(algo, CustomAlgo):
        trainer_class: type[AgentGRPOTrainer] = import_by_name(algo.trainer)
        return trainer_class
    found = load_attribute(algo.path, "Trainer")
    if not (isinstance(found, type) and issubclass(found, AgentGRPOTrainer)):
        raise UserError(f"algo.path={algo.path}: Trainer must be a subclass of agentrl.trainers.grpo.AgentGRPOTrainer")
    return found


def keep_fitting(chat: ChatFormat, tasks: list[Task], config: Config, what: str) -> list[Task]:
    """Return the tasks whose prompt fits `rollout.max_prompt_tokens`, and print how many do not.

    Raises:
        UserError: no task fits.
    """
    kept = [t for t in tasks if len(chat.prompt_ids(t.prompt, t.tools)) <= config.rollout.max_prompt_tokens]
    if len(kept) < len(tasks):
        print(
            f"{len(tasks) - len(kept)} of {len(tasks)} {what} tasks exceed rollout.max_prompt_tokens and are left out"
        )
    if not kept:
        raise UserError(
            f"bench={config.bench.name}: no {what} task fits rollout.max_prompt_tokens="
            f"{config.rollout.max_prompt_tokens}; raise it"
        )
    return kept


def choose_tasks(
    tasks: list[Task],
    bench: Bench,
    trainer_class: type[AgentGRPOTrainer],
    settings: Settings,
    expert_trace: ExpertTraces,
) -> list[Task]:
    """Return the training tasks: all of them, or with trainer.tasks=with_trace those with an expert trace.

    Raises:
        UserError: no task has a trace, but the method needs traces; or there are too few tasks for a rollout batch.
    """
    traced = issubclass(trainer_class, TracedTrainer)
    if traced or settings.tasks == "with_trace":
        with_trace = [task for task in tasks if expert_trace(task) is not None]
        if not with_trace:
            way_out = "use algo=grpo" if traced else "set trainer.tasks=all"
            raise UserError(f"bench={bench.name}: no training task has an expert trace; {way_out}")
        if lacking := len(tasks) - len(with_trace):
            left_out = settings.tasks == "with_trace"
            what = (
                "are left out" if left_out else "are trained on without one (trainer.tasks=with_trace leaves them out)"
            )
            print(f"{lacking} of {len(tasks)} training tasks have no expert trace and {what}")
            tasks = with_trace if left_out else tasks
    if len(tasks) < settings.prompts_per_batch:
        raise UserError(
            f"trainer.prompts_per_batch={settings.prompts_per_batch} but only {len(tasks)} training tasks are usable; "
            "lower it"
        )
    return tasks


def tell_reward(config: Config, bench: Bench, tasks: list[Task], console: RunConsole) -> None:
    """Tell the user if the configured reward is not used, or if it needs reference calls that the bench lacks.

    Only the tasks of the first rollout batch are checked for reference calls.
    """
    first, reward = tasks[: config.trainer.prompts_per_batch], config.reward.name
    if has_own_reward(bench):
        if not isinstance(bench, TwoSided):
            console.say(f"bench={bench.name} rewards episodes itself: reward={reward} is not read")
    elif reward in COMPARING and not any(reference_calls(bench, task) for task in first):
        console.say(
            f"warning: bench={bench.name} has no reference calls, so calls earn nothing under reward={reward}; set "
            "reward=answer, or give the bench reference_calls (docs/rewards.md)"
        )


def build_trainer(
    config: Config,
    run: RunDirectory,
    bench: Bench,
    chat: ChatFormat,
    model: PreTrainedModel,
    tasks: list[Task],
    stop: StopRequest,
    console: RunConsole,
    judge: Judge | None = None,
    expert_trace: ExpertTraces | None = None,
) -> tuple[Trainer | None, RolloutEngine]:
    """Make the trainer of `config.algo` and an engine that plays episodes with its policy.

    The trainer is None if the algorithm only evaluates. `judge` grades what the bench cannot grade itself during
    training. `expert_trace` gives traces in place of the bench's own.
    """
    expert_trace = expert_trace or bench.expert_trace
    trainer: Trainer
    cycle = 1
    if (trainer_class := rl_trainer(config.algo)) is not None:
        chosen = choose_tasks(tasks, bench, trainer_class, config.trainer, expert_trace)
        tell_reward(config, bench, chosen, console)
        trainer = trainer_class(
            model=model,
            chat=chat,
            args=grpo_arguments(config, run.checkpoints_dir),
            config=config,
            bench=bench,
            tasks=chosen,
            expert_trace=expert_trace,
            peft_config=lora_config(config.model),
            rollout_log=RolloutLog(run, chat.tokenizer, config.trainer.log_rollouts),
            console=console,
            judge=judge,
        )
        engine = trainer.engine
        if config.eval.before:
            trainer.move_to_device()
        cycle = plan_batches(config).updates_per_rollout
    else:
        engine = local_engine(config, chat, model)
        if not config.algo.trains:
            return None, engine
        parts = Parts(config, run, bench, chat, model, tasks, engine, console, judge, expert_trace, stop)
        trainer = import_by_name(config.algo.trainer)(parts)
        if trainer.is_fsdp_enabled and isinstance(engine.sampler, TransformersSampler):
            engine.sampler.sample_from(lambda: trainer.model)  # with adapters, `model` lies below what is shared out
    check_sharding(trainer, config.hardware)
    callbacks: list[TrainerCallback] = [
        Record(run, console),
        Watch(config.faults, console.say),
        Checkpoints(run, config.trainer, cycle, stop),
    ]
    if isinstance(trainer, AgentGRPOTrainer):
        callbacks += trainer.own_callbacks()
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer, engine


def final_engine(config: Config, engine: RolloutEngine, model: PreTrainedModel, chat: ChatFormat) -> RolloutEngine:
    """Return the engine for the evaluation after training: `engine`, or for split_softmax one that samples with it."""
    if isinstance(config.algo, SplitSoftmax):
        return SplitSoftmaxEngine(engine, model, chat, config.algo.k)
    return engine
