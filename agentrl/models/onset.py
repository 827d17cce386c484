"""Measure where a model looks when its response begins, for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentrl.core.errors import UserError
from agentrl.core.stats import Interval, bootstrap_interval
from agentrl.models.spans import PromptSpans
from agentrl.objectives.attention import MEASURES, distance_profile, onset_measures


@dataclass(frozen=True)
class OnsetTable:
    """The measures of one model (one dict for each prompt) and its mean attention profile (BINS,)."""

    rows: list[dict[str, float]]
    profile: list[float]


@torch.no_grad()
def onset_attention(model: Any, ids: Sequence[int]) -> Tensor:
    """Return the attention (L layers, H heads, T tokens) of the last of T prompt tokens, for an eager model.

    The other tokens only fill the cache.

    Raises:
        UserError: the model does not attend to the whole prompt (sliding windows, state-space layers).
    """
    device = model.device
    past = model(torch.tensor([ids[:-1]], device=device), use_cache=True).past_key_values
    last = torch.tensor([ids[-1:]], device=device)
    layers = model(last, past_key_values=past, use_cache=True, output_attentions=True).attentions
    if not layers or any(layer is None or layer.shape[-1] != len(ids) for layer in layers):
        raise UserError("this model does not attend to its whole prompt in every layer; choose another model")
    return torch.stack([layer[0, :, 0] for layer in layers]).float()


def measure_onset(model: Any, prompts: Sequence[PromptSpans], alpha: float) -> OnsetTable:
    """Compute HIPO's Table 3 for one model over `prompts`. `alpha` is the share of heads that are averaged."""
    rows, mass = [], torch.zeros(())
    for prompt in prompts:
        attention = onset_attention(model, prompt.ids).cpu()
        rows.append(onset_measures(attention, prompt.system, prompt.user, alpha))
        mass = mass + distance_profile(attention, alpha) / len(prompts)
    return OnsetTable(rows, mass.tolist())


def compare_onsets(base: OnsetTable, trained: OnsetTable, clusters: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Return {measure: {base, trained, difference}}: means and paired differences.

    All have 95% bootstrap intervals by cluster. A ratio is the mean of the prompts' ratios, as in the paper (its
    FarMass / NearMass is not its Far/Near). A prompt is left out of a ratio if the ratio is undefined for one of the
    models.
    """
    compared = {}
    for measure in MEASURES:
        triples = [
            (before[measure], after[measure], cluster)
            for before, after, cluster in zip(base.rows, trained.rows, clusters, strict=True)
            if before[measure] == before[measure] and after[measure] == after[measure]
        ]
        labels = [cluster for _, _, cluster in triples]
        compared[measure] = {
            "base": bootstrap_interval([b for b, _, _ in triples], labels),
            "trained": bootstrap_interval([a for _, a, _ in triples], labels),
            "difference": bootstrap_interval([a - b for b, a, _ in triples], labels),
        }
    return compared
