"""From hidden states to log-probs and entropies, at the places that are scored and nowhere else.

TRL's fused head does the arithmetic in chunks of the vocabulary, so no (tokens x vocabulary) tensor is ever made. It
projects every place of the batch on a CPU; here the places are picked between the body of the model and its head.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from agentrl.scoring.sequence import Scores


def language_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside what distribution and adapters wrapped around it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise TypeError(f"{type(model).__name__} holds no language model of transformers")


def scores_by_sequence(output: Any, sizes: Many[int], index: Tensor | None = None, router: bool = False) -> Scores:
    """Cut what the head computed, each (1, S), into the values of each sequence.

    index: where among the S places each sequence finds its own; None if they lie one after the other.
    """

    def split(values: Tensor | None) -> list[Tensor]:
        if values is None:
            return []
        return list((values[0] if index is None else values[0][index]).split(list(sizes)))

    logps, entropies, best, logits = map(split, (output.log_probs, output.entropy, output.is_top1, output.mean_logits))
    return Scores(logps, entropies, best, logits, output.aux_loss if router else None)


def score_places(model: nn.Module, places: Tensor, targets: Tensor, **inputs: Any) -> Any:
    """Run `model`, whose head TRL's `add_fused_lm_head` has made, and score `targets` (S,) at `places` (S,).

    A place is an index into the flattened (batch, length) of the inputs; its hidden state predicts the target. Every
    field of the output is (1, S).
    """

    def pick(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[places].unsqueeze(0)
        return output

    hook = language_model(model).base_model.register_forward_hook(pick)
    try:
        return model(**inputs, shift_labels=targets.unsqueeze(0), fused_lm_head=True)
    finally:
        hook.remove()
