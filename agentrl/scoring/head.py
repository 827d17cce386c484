"""Computes log-probs and entropies from hidden states, only at the places that are scored.

TRL's fused head computes them in chunks of the vocabulary, so it never makes a (tokens x vocabulary) tensor. On a CPU
it would project every place of the batch. So the scored places are picked here, between the model's body and its head.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob

from agentrl.scoring.sequence import Scores

# Places that TRL's head scores at once on a CPU. TRL takes 4,096, and its code for CPUs holds nine copies of their
# logits in float32: 4.5 GiB for 32,768 entries of the vocabulary. Fewer places give the same values in less time.
CPU_PLACES = 256


def language_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside the wrappers of distributed training and adapters.

    Raises TypeError if there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise TypeError(f"{type(model).__name__} holds no language model of transformers")


def scores_by_sequence(output: Any, sizes: Many[int], index: Tensor | None = None, router: bool = False) -> Scores:
    """Cut the outputs of the head, each (1, S), into the values of each sequence.

    sizes: the number of scored places of each sequence. index: indices into the S places, for all sequences one after
    the other; None if the S places are already in that order.
    """

    def split(values: Tensor | None) -> list[Tensor]:
        if values is None:
            return []
        return list((values[0] if index is None else values[0][index]).split(list(sizes)))

    logps, entropies, best, logits = map(split, (output.log_probs, output.entropy, output.is_top1, output.mean_logits))
    return Scores(logps, entropies, best, logits, output.aux_loss if router else None)


def score_places(model: nn.Module, places: Tensor, targets: Tensor, **inputs: Any) -> Any:
    """Run `model` and score `targets` (S,) at `places` (S,). TRL's `add_fused_lm_head` must have made its head.

    A place is an index into the flattened (batch, length) of the inputs. The hidden state at a place predicts its
    target. Every field of the output is (1, S).
    """

    def pick(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[places].unsqueeze(0)
        return output

    if places.device.type == "cpu":
        chunked_logprob.TOKEN_CHUNK_SIZE = CPU_PLACES  # read in each forward and backward pass
    hook = language_model(model).base_model.register_forward_hook(pick)
    try:
        return model(**inputs, shift_labels=targets.unsqueeze(0), fused_lm_head=True)
    finally:
        hook.remove()
