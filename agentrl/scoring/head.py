"""From hidden states to log-probs and entropies, at the places that are scored and nowhere else.

TRL's fused head does the arithmetic in chunks of the vocabulary, so no (tokens x vocabulary) tensor is ever made. It
projects every place of the batch on a CPU; here the places are picked between the body of the model and its head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def language_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside what distribution and adapters wrapped around it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise TypeError(f"{type(model).__name__} holds no language model of transformers")


def by_sequence(values: Tensor | None, sizes: Sequence[int], index: Tensor | None = None) -> list[Tensor]:
    """Cut an output (1, S) of the head into the values of each sequence; none where the head does not compute it."""
    if values is None:
        return []
    return list((values[0] if index is None else values[0][index]).split(list(sizes)))


def score_places(model: nn.Module, places: Tensor, targets: Tensor, **inputs: Any) -> Any:
    """Run `model`, whose head TRL's `add_fused_lm_head` has made, and score `targets` (S,) at `places` (S,).

    A place is an index into the flattened (batch, length) of the inputs; its hidden state predicts the target. The
    output's `log_probs` and `entropy` are (1, S).
    """

    def pick(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[places].unsqueeze(0)
        return output

    hook = language_model(model).base_model.register_forward_hook(pick)
    try:
        return model(**inputs, shift_labels=targets.unsqueeze(0), fused_lm_head=True)
    finally:
        hook.remove()
