"""Checks, after each sync of weights, that vLLM and the trainer give the same log-probs to the same tokens.

A server may answer 200 and still sample with other weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentrl.core.engine import Decoding
from agentrl.core.errors import UserError
from agentrl.models.modes import evaluating
from agentrl.rollout.sampler import Request, Turn

PROMPTS, TOKENS = 4, 32  # number of training prompts, and of tokens that are sampled after each
# A higher temperature than a run uses. At a low one a trained policy samples tokens that it is sure of, and its old
# weights are just as sure of them, so old weights would go unnoticed.
PROBE = Decoding(temperature=2.0)
BOUNDS = {"float32": 1e-3, "16 bits": 0.1, "fp8": 0.3}  # mean difference of log-probs, in nats per token


def parity_requests(trainer: Any) -> list[Request]:
    """Make the requests for the comparison: a few training prompts, each followed by a short turn."""
    tasks = trainer.tasks[:PROMPTS]
    prompts = [trainer.chat.prompt_ids(task.prompt, task.tools) for task in tasks]
    return [Request(number, ids, TOKENS) for number, ids in enumerate(prompts)]


def check_parity(trainer: Any, turns: dict[int, Turn]) -> None:
    """Compare the log-probs of vLLM and of the trainer for the turns of `parity_requests`, which PROBE sampled.

    Raises:
        UserError: their mean absolute difference exceeds `vllm.parity`.
    """
    differences = []
    with evaluating(trainer.model):
        for request in parity_requests(trainer):
            turn = turns[request.episode]
            theirs = torch.tensor(turn.logprobs, dtype=torch.float64)
            differences.append((probe_logps(trainer, request.ids, turn.ids) - theirs).abs())
    mean, bound = torch.cat(differences).nanmean().item(), parity_bound(trainer.config)
    if not mean <= bound:
        raise UserError(
            f"vllm.mode={trainer.config.vllm.mode}: after new weights the log-probs of vLLM and of the trainer differ "
            f"by {mean:.3g} nats a token, and {bound:g} is the limit (vllm.parity): vLLM samples another model than "
            "the one that is trained; check that it serves the checkpoint of model.path, and restart it"
        )


def parity_bound(config: Any) -> float:
    """Return the largest allowed mean difference of log-probs, in nats per token."""
    if config.vllm.parity is not None:
        return float(config.vllm.parity)
    if config.vllm.kv_cache == "fp8":
        return BOUNDS["fp8"]
    exact = config.model.dtype == "float32" and not config.hardware.bf16
    return BOUNDS["float32" if exact else "16 bits"]


def probe_logps(trainer: Any, prompt: list[int], ids: list[int]) -> Tensor:
    """Return the log-probs (T,) of `ids` (T,) after `prompt` under the trainer's policy, at PROBE's temperature."""
    device = trainer.accelerator.device
    with torch.no_grad():
        output = trainer.model(
            input_ids=torch.tensor([prompt + ids], device=device), logits_to_keep=len(ids) + 1, use_cache=False
        )
    logps = (output.logits[0, :-1].double() / PROBE.temperature).log_softmax(-1)
    return logps.gather(1, torch.tensor(ids, device=device)[:, None])[:, 0].cpu()
