"""A sampler over vLLM in the training process. It uses the backend that TRL makes for its trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentrl.core.engine import Decoding
from agentrl.core.stop import any_process, most_of_processes
from agentrl.rollout.sampler import Request, Turn, always_false, cut_turn


class ColocatedSampler:
    """Samples with `backend`, a `trl.generation.vllm_generation.VLLMGeneration`.

    `refresh` copies the weights of the policy to vLLM. Each session calls it first. With `joint`, all processes must
    call the backend equally often and with equally many prompts: they share a model in vLLM, or fill it together when
    it wakes up. So a process samples fillers while others still have episodes.
    """

    def __init__(self, backend: Any, refresh: Callable[[], None], ends: Sequence[int], joint: bool = False) -> None:
        self._backend, self._refresh, self.ends, self.joint = backend, refresh, ends, joint
        self._filler = [ends[0]]  # later a prompt of this process, whose turn is likely to end
        # vLLM reads the tokenizer of the checkpoint, whose end token may not be that of the chat template.
        backend.generation_kwargs = {**(backend.generation_kwargs or {}), "stop_token_ids": list(ends)}
        self.context = int(backend.llm.llm_engine.model_config.max_model_len)

    @contextmanager
    def session(self, decoding: Decoding | None) -> Iterator[_Session]:
        """See `Sampler.session`."""
        self._refresh()
        with self._decoding(decoding):
            yield _Session(self)
            while self.joint and any_process(False):
                self.sample_now([])

    def sample_now(self, requests: Sequence[Request], decoding: Decoding | None = None) -> dict[int, Turn]:
        """Sample one turn per request with the weights that vLLM has now. Return turns with log-probs, by episode."""
        prompts = [list(request.ids) for request in requests]
        if self.joint:
            self._filler = prompts[0] if prompts else self._filler
            prompts += [self._filler] * (most_of_processes(len(prompts)) - len(prompts))
        with self._decoding(decoding):
            _, sampled, logprobs, _ = self._backend.generate(prompts=prompts, images=None, num_generations=1)
        return {
            request.episode: cut_turn(request, ids, [first for first, *_ in values], self.ends, self.context)
            for request, ids, values in zip(requests, sampled, logprobs, strict=not self.joint)
        }

    @contextmanager
    def _decoding(self, decoding: Decoding | None) -> Iterator[None]:
        """Set the decoding of vLLM for the block and restore it at the end. None leaves it unchanged."""
        backend = self._backend
        saved = (backend.temperature, backend.top_p)
        if decoding is not None:
            backend.temperature, backend.top_p = decoding.temperature, decoding.top_p
        try:
            yield
        finally:
            backend.temperature, backend.top_p = saved


class _Session:
    """A session that answers all requests together, when the longest turn among them has ended."""

    def __init__(self, sampler: ColocatedSampler) -> None:
        self._sampler = sampler

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        if self._sampler.joint:
            any_process(True)
        return self._sampler.sample_now(requests)
