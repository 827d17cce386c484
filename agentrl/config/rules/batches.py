"""Does everything divide? Whole groups on every process, whole minibatches in a batch, whole turns in a budget."""

from __future__ import annotations

from agentrl.config.checks import require
from agentrl.config.schema import Config, Rollout


def group_size(config: Config) -> int:
    """Sequences per prompt in one update: K, or 1 where there are no rollouts."""
    return config.rollout.num_generations if config.algo.rollouts else 1


def check_batches(config: Config) -> None:
    """Raise UserError where a batch does not divide."""
    _budget(config.rollout)
    trainer, processes, k = config.trainer, config.hardware.processes, group_size(config)
    epochs_rule = "must be above 0 when trainer.max_steps is -1"
    require(trainer.max_steps != -1 or trainer.epochs > 0, "trainer.epochs", trainer.epochs, epochs_rule)
    prompts, mini = trainer.prompts_per_batch, trainer.minibatch_prompts
    mini_rule = f"must divide trainer.prompts_per_batch={prompts}; nearest is {_divisor(prompts, mini)}"
    require(prompts % mini == 0, "trainer.minibatch_prompts", mini, mini_rule)
    spread = f"must be a multiple of hardware.processes={processes}, so that each process holds whole groups"
    require(prompts % processes == 0, "trainer.prompts_per_batch", prompts, spread)
    sequences = mini * k
    per_process = sequences // processes
    # Rollouts are cut by tokens; room for more than an update holds is no mistake.
    micro = 1 if config.algo.rollouts else min(trainer.micro_batch, max(1, per_process))
    require(
        sequences % (micro * processes) == 0,
        "trainer.micro_batch",
        micro,
        f"an update has {sequences} sequences (minibatch_prompts={mini} x {k}) on {processes} process(es), which "
        + (
            f"{micro} does not divide; nearest is {_divisor(per_process, micro)}"
            if per_process * processes == sequences
            else f"does not split evenly; make trainer.minibatch_prompts a multiple of {processes}"
        ),
    )


def _budget(rollout: Rollout) -> None:
    turn, budget = rollout.max_turn_tokens, rollout.max_completion_tokens
    turn_rule = f"must lie between 1 and rollout.max_completion_tokens={budget}, or be null"
    require(turn is None or turn <= budget, "rollout.max_turn_tokens", turn, turn_rule)


def _divisor(number: int, near: int) -> int:
    """The divisor of `number` closest to `near`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))
