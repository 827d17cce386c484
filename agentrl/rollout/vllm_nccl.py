"""Sends the weights of the policy to a vLLM server tensor by tensor over NCCL, from GPU to GPU.

TRL's `VLLMGeneration` does it. A broadcast over NCCL never ends if the other side is gone. So the server is asked
before each one whether it is still the same, and during it whether it lives.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils.other import get_free_port
from trl.generation.vllm_generation import VLLMGeneration

from agentrl.core.errors import UserError, first_line
from agentrl.core.stop import together
from agentrl.endpoint.vllm import VllmServer, VllmTrouble, server_failure
from agentrl.rollout.vllm_weights import keep_base

LOOK_S = 5.0  # seconds between two looks at the server
MISSES = 3  # looks in a row without an answer after which the server counts as gone


class NcclWeights:
    """Sends all weights. The trainer's environment needs vllm installed. `settings` are the server's at the start."""

    def __init__(
        self, server: VllmServer, name: str, settings: dict[str, Any], model: Any, accelerator: Any, tokenizer: Any
    ) -> None:
        self._server, self._name, self._accelerator = server, name, accelerator
        self._instance = settings.get("instance_id")  # vLLM draws one whenever it starts
        self._backend = VLLMGeneration(
            model,
            accelerator,
            tokenizer,
            mode="server",
            server_base_url=server.url,
            server_timeout=30.0,
            group_port=get_free_port(),  # another run on this machine may use TRL's
        )
        keep_base(self._backend)

    def sync_weights(self) -> str:
        """See `Weights`. Raises CommonError if the server is gone, was restarted, or refuses the weights.

        If it dies during the broadcast, this process ends with a message: nothing else can end the broadcast.
        """
        main = self._accelerator.is_main_process
        together(self._check_instance if main else lambda: None)

        def send() -> None:
            try:
                with ends_without(self._server) if main else nullcontext():
                    self._backend.sync_weights()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # TRL raises it as such for every answer that is not 200
                raise server_failure("vllm.url", self._server.url, first_line(error) or type(error).__name__) from error

        if self._backend._dist.is_fsdp or self._backend._dist.is_zero3:  # the others gather, and would wait for ever
            send()
        else:
            together(send)
        return self._name

    def _check_instance(self) -> None:
        try:
            found = self._server.settings().get("instance_id")
        except VllmTrouble as trouble:
            raise server_failure("vllm.url", self._server.url, trouble) from trouble
        if found != self._instance:
            raise UserError(
                f"vllm.url={self._server.url}: the server was started again, and no longer belongs to this run's NCCL "
                "group; give the same command again: the run goes on from its last checkpoint"
            )


@contextmanager
def ends_without(server: VllmServer, leave: Callable[[int], Any] = os._exit) -> Iterator[None]:
    """Watch `server` during the block. If it is gone, say so and end this process at once with `leave(1)`."""
    done = threading.Event()

    def watch() -> None:
        missed = 0
        while not done.wait(LOOK_S):
            try:
                server.check_health()
                missed = 0
            except VllmTrouble as trouble:
                missed += 1
                if missed == MISSES and not done.is_set():
                    failure = server_failure("vllm.url", server.url, f"while it took new weights: {trouble}")
                    print(f"agentrl: error: {failure}", file=sys.stderr, flush=True)
                    leave(1)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
