"""A server that answers as vLLM does, with a network of its own behind it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agentrl.models.loading import load_model
from tests.support.helpers import small
from tests.support.vllm_stand_in import StandIn

CHOSEN = (
    *("algo=grpo", "vllm.mode=server", "model=tiny", "rollout.num_generations=2", "rollout.max_turns=2"),
    *("trainer.prompts_per_batch=1", "trainer.minibatch_prompts=1", "rollout.max_turn_tokens=8"),
)


@contextmanager
def network(
    *overrides: str, stale: bool = False, chosen: tuple[str, ...] = CHOSEN, **where: Any
) -> Iterator[tuple[StandIn, Any, list[set[str]]]]:
    """A server, the model behind it, and the names of the tensors that it was sent; `stale`: it forgets them; `where`:
    host and port.
    """
    model = load_model(small(*chosen, *overrides).model).eval()
    lock, taken = threading.Lock(), []

    def take(folder: str) -> None:
        weights = load_file(Path(folder) / "model.safetensors")
        taken.append(set(weights))
        if not stale:
            lost, unknown = model.load_state_dict(weights, strict=False)
            assert not unknown and set(lost) <= {"lm_head.weight"}

    def say(body: Any) -> Any:
        with lock, torch.no_grad():
            rng, ids, logprobs = torch.Generator().manual_seed(body["seed"]), list(body["prompt"]), []
            while len(logprobs) < body["max_tokens"]:
                logits = model(torch.tensor([ids])).logits[0, -1] / (body["temperature"] or 1e-3)
                distribution, order = logits.softmax(-1).sort(descending=True)
                distribution[distribution.cumsum(-1) - distribution >= body["top_p"]] = 0
                distribution /= distribution.sum()
                rank = int(torch.multinomial(distribution, 1, generator=rng))
                ids.append(int(order[rank]))
                logprobs.append(float(distribution[rank].log()))
                if ids[-1] in body["stop_token_ids"]:
                    break
        return ids[len(body["prompt"]) :], logprobs

    with StandIn(say, take).serving(**where) as stand_in:
        yield stand_in, model, taken


if __name__ == "__main__":  # python -m tests.support.vllm_network PORT KEY=VALUE...
    with network(chosen=tuple(sys.argv[2:]), port=int(sys.argv[1])):
        signal.pause()
