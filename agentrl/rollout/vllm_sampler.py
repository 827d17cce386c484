"""A sampler over vLLM, in this process or behind a server, through the backend that TRL makes for its trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentrl.core.engine import Decoding
from agentrl.rollout.sampler import Request, Turn, cut_turn


class VllmSampler:
    """Samples with `backend`, a `trl.generation.vllm_generation.VLLMGeneration`; `refresh` brings it the weights.

    `group`: rollouts of one prompt that stand beside each other when training; their first turn is one request.
    """

    def __init__(
        self, backend: Any, refresh: Callable[[], None], ends: Sequence[int], context: int, group: int
    ) -> None:
        self._backend, self._refresh, self._group, self.ends = backend, refresh, group, ends
        self.context = context
        if backend.mode == "colocate":
            self.context = int(backend.llm.llm_engine.model_config.max_model_len)

    @contextmanager
    def session(self, decoding: Decoding | None) -> Iterator[_Session]:
        """See `Sampler.session`."""
        backend = self._backend
        saved = (backend.temperature, backend.top_p)
        if decoding is not None:
            backend.temperature, backend.top_p = decoding.temperature, decoding.top_p
        try:
            yield _Session(self, self._group if decoding is None else 1)
        finally:
            backend.temperature, backend.top_p = saved

    def generate(self, prompts: list[list[int]], group: int) -> tuple[list[list[int]], list[list[float]]]:
        """Ids and log-probs of one turn after each prompt; `group` equal prompts stand beside each other."""
        self._refresh()
        _, ids, logprobs, _ = self._backend.generate(prompts=prompts, images=None, num_generations=group)
        return ids, [[first for first, *_ in turn] for turn in logprobs]  # of the sampled token


class _Session:
    def __init__(self, sampler: VllmSampler, group: int) -> None:
        self._sampler, self._group = sampler, group

    def sample(self, requests: Sequence[Request]) -> dict[int, Turn]:
        sampler = self._sampler
        sampled = sampler.generate([request.ids for request in requests], self._group)
        self._group = 1  # after the first turn every episode has a history of its own
        return {
            request.episode: cut_turn(request, ids, logprobs, sampler.ends, sampler.context)
            for request, ids, logprobs in zip(requests, *sampled, strict=True)
        }
