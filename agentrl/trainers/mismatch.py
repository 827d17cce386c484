"""Measures how the sampler's log-probs differ from the trainer's, logs it, and makes weights to correct for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import nanmax

from agentrl.objectives.policy import truncated_weights
from agentrl.objectives.sampling import kept_log_mass, mismatch_by_token, sampler_mismatch
from agentrl.trainers.passes import agree_on_passes

PLACES = 2048  # number of tokens whose logits over the vocabulary are in memory at once


def compare_with_sampler(trainer: Any, batch: dict[str, Any]) -> None:
    """Log how the trainer's log-probs differ from the sampler's. If vLLM sampled, add weights that correct for it.

    Both log-probs are taken under the temperature and the top_p of the rollouts. `batch` is TRL's rollout batch with
    the sampler's log-probs (B, C). It gets `old_per_token_logps`, and `importance_sampling_ratio` if vLLM sampled.
    """
    sampled, mask = batch["sampling_per_token_logps"], batch["completion_mask"] * batch.get("tool_mask", 1)
    weighs = trainer.config.vllm.mode != "off"
    if not weighs and (batch.get("old_per_token_logps") is None or trainer.config.rollout.top_p < 1):
        return  # samples of transformers are on policy up to rounding, so no pass is worth it
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    shown = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = sampled.shape[1]
    if batch.get("old_per_token_logps") is None:
        with torch.no_grad():
            scored = trainer._get_per_token_logps_and_entropies(trainer.model, ids, shown, width)
        batch["old_per_token_logps"] = scored[0]
    old = batch["old_per_token_logps"] - log_masses(trainer, ids, shown, width)
    known = torch.zeros_like(mask)  # 1 in rows that have old log-probs under their prompt
    known[trainer.rows_under_prompt(len(mask))] = 1
    mask = mask * known
    log = trainer._metrics["train" if trainer.model.training else "eval"]
    for name, value in sampler_mismatch(old, sampled, mask).items():
        every = trainer.accelerator.gather(value)
        log[f"sampler/{name}"].append((nanmax(every) if name == "ratio_max" else every.nanmean()).item())
    if weighs:
        cap = trainer.vllm_importance_sampling_clip_max
        level = trainer.policy_settings().level
        batch["importance_sampling_ratio"] = truncated_weights(old, sampled, mask, cap, level)


def log_first_pass(trainer: Any, inputs: dict[str, Any], logps: Tensor, mask: Tensor) -> None:
    """Log how the log-probs (B, C) of an update's first pass differ from the sampler's, over the tokens of `mask`.

    This is for a rollout batch with one update: its loss has no old log-probs, so `compare_with_sampler` had nothing to
    compare. It costs no pass. With top_p < 1 nothing is logged, because the mass that top_p keeps is not known.
    """
    sampled = inputs.get("sampling_per_token_logps")
    if sampled is None or inputs.get("old_per_token_logps") is not None or trainer.config.rollout.top_p < 1:
        return
    known = mask * ~sampled.isnan()
    kl, ratio = mismatch_by_token(logps, sampled)
    trainer.log_step.add_means({"sampler/kl": kl, "sampler/ratio_mean": ratio}, known)
    largest = ratio.masked_fill(known == 0, 0).amax(1)
    trainer.log_step.add_extreme("sampler/ratio_max", largest.masked_fill(known.sum(1) == 0, torch.nan), nanmax)


def log_masses(trainer: Any, ids: Tensor, mask: Tensor, width: int) -> Tensor | float:
    """Return the log of the probability that top_p keeps, at each of the last `width` tokens (B, width).

    It is 0 with top_p=1. It needs the whole distribution, so it computes the logits of PLACES tokens of one row at a
    time.
    """
    top_p, temperature = trainer.config.rollout.top_p, trainer.config.rollout.temperature
    if top_p == 1:
        return 0.0
    masses = torch.zeros(len(ids), width, device=ids.device)
    pieces = [(row, start) for row in range(len(ids)) for start in range(0, width, PLACES)]
    for number in range(agree_on_passes(trainer.accelerator, len(pieces))):
        row, start = pieces[min(number, len(pieces) - 1)]  # repeat the last piece while other processes have more
        begin, places = int(mask[row].argmax()), min(PLACES, width - start)  # begin: the first token after the padding
        until = ids.shape[1] - width + start + places
        with torch.no_grad():
            output = trainer.model(
                input_ids=ids[row : row + 1, begin:until],
                attention_mask=mask[row : row + 1, begin:until],
                logits_to_keep=places + 1,
                use_cache=False,
            )
        masses[row, start : start + places] = kept_log_mass(output.logits[0, :-1] / temperature, top_p)
    return masses
