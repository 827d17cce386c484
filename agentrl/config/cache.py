"""How many tokens a sampler in the training process keeps the keys and values of, and how large they are."""

from __future__ import annotations

import math

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.networks import known_network
from agentrl.config.schema import Config, Rollout
from agentrl.config.vllm import positions_of, samples_with_vllm, served_dtype, served_path

LEAST_CACHE = 65536  # tokens; short episodes fill a batch, and long ones find room on one device


def cache_budget(rollout: Rollout, positions: float = math.inf) -> int:
    """Tokens of the cache; `positions` is the length of the model's context."""
    return rollout.cache_tokens or max(LEAST_CACHE, 4 * longest_episode(rollout, positions))


def longest_episode(rollout: Rollout, positions: float = math.inf) -> int:
    """Tokens of the longest context that an episode can have."""
    return int(min(positions, rollout.max_prompt_tokens + rollout.max_completion_tokens))


def most_cached(config: Config) -> int:
    """Tokens in the cache of one process at most; 0 where another program samples, or nobody."""
    algo, trainer, k = config.algo, config.trainer, config.rollout.num_generations
    if samples_with_vllm(config) or (isinstance(algo, Evaluate) and algo.endpoint.base_url is not None):
        return 0
    together = config.eval.batch if config.eval.before or config.eval.after else 0  # episodes
    if algo.rollouts or algo.sampled_before(1, 1):
        together = max(together, trainer.prompts_per_batch * k // config.hardware.processes)
    positions = positions_of(served_path(config)) or math.inf
    longest = longest_episode(config.rollout, positions)
    return min(max(cache_budget(config.rollout, positions), longest), together * longest)  # one is always held


def cached_bytes(config: Config) -> int | None:
    """Bytes of the keys and values of one token; None where the network is not known here."""
    network = known_network(config)
    return None if network is None else network.cached_bytes(served_dtype(config))
