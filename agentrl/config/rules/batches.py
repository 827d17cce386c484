"""Does everything divide? A process needs whole groups, a batch whole minibatches, and a turn must fit its budget."""

from __future__ import annotations

from agentrl.config.checks import require
from agentrl.config.schema import Config, Rollout


def group_size(config: Config) -> int:
    """Return the number of sequences per prompt in one update: K, or 1 without rollouts."""
    return config.rollout.num_generations if config.algo.rollouts else 1


def check_batches(config: Config) -> None:
    """Raise UserError if a batch does not divide."""
    _budget(config.rollout)
    trainer, processes, k = config.trainer, config.hardware.processes, group_size(config)
    epochs_rule = "must be above 0 when trainer.max_steps is -1"
    require(trainer.max_steps != -1 or trainer.epochs > 0, "trainer.epochs", trainer.epochs, epochs_rule)
    prompts, mini = trainer.prompts_per_batch, trainer.minibatch_prompts
    mini_rule = f"must divide trainer.prompts_per_batch={prompts}; the nearest is {_divisor(prompts, mini)}"
    require(prompts % mini == 0, "trainer.minibatch_prompts", mini, mini_rule)
    spread = f"must be a multiple of hardware.processes={processes}, so that each process holds whole groups"
    require(prompts % processes == 0, "trainer.prompts_per_batch", prompts, spread)
    even_rule = (
        f"an update has {mini * k} sequences (minibatch_prompts={mini} x {k}) on {processes} processes, which does not "
        f"split evenly; make trainer.minibatch_prompts a multiple of {processes}"
    )
    require(mini * k % processes == 0, "trainer.minibatch_prompts", mini, even_rule)
    traced_rule = (
        f"must be a multiple of hardware.processes={processes}: algo={config.algo.name} adds a term for each prompt to "
        "the update that holds the prompt's rollouts, so an update needs whole groups on each process"
    )
    traced = config.algo.rollouts and "traces" in config.algo.reads
    require(not traced or mini % processes == 0, "trainer.minibatch_prompts", mini, traced_rule)


def _budget(rollout: Rollout) -> None:
    turn, budget = rollout.max_turn_tokens, rollout.max_completion_tokens
    turn_rule = f"must lie between 1 and rollout.max_completion_tokens={budget}, or be null"
    require(turn is None or turn <= budget, "rollout.max_turn_tokens", turn, turn_rule)


def _divisor(number: int, near: int) -> int:
    """The divisor of `number` closest to `near`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))
