"""Keep tokens that have no row in the embedding away from the network."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from agentrl.config.schema import Model
from agentrl.core.errors import UserError
from agentrl.models.adapters import network_config


def fit_vocabulary(config: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make sure that every token has a row in the embedding. A token without one crashes the first batch that holds it.

    Some tokenizers hold special tokens without a row that nothing writes: Gemma 3's has one for images, which its
    text-only checkpoints do not know. They are removed from `tokenizer`, which then reads their text as ordinary text.

    Raises:
        UserError: a token without a row is ordinary vocabulary, is in the chat template, or begins, ends or pads a
            text. The message names the first such token.
    """
    network = network_config(config)
    text = None if network is None else network.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if not isinstance(rows, int):
        return
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    written = [(index, token) for index, token in beyond if not _unwritten(tokenizer, index, token)]
    if beyond and not written and not _remove_tokens(tokenizer, [token for _, token in beyond]):
        written = beyond
    if written:
        index, token = written[0]
        raise UserError(
            f"model.path={config.path}: {len(written)} tokens of its tokenizer have no row in the model's embedding of "
            f"{rows} (first: {token!r}, id {index}); use the tokenizer that the model was trained with, or add rows "
            "with model.resize_token_embeddings and save the model"
        )
    padding = getattr(text, "pad_token_id", None)
    if isinstance(padding, int) and padding >= rows:
        raise UserError(
            f"model.path={config.path}: pad_token_id={padding} of its config.json has no row in the embedding of {rows}"
            "; write the tokenizer's padding token there"
        )


def _unwritten(tokenizer: PreTrainedTokenizerFast, index: int, token: str) -> bool:
    """Check whether only its own text gives a token: it is special, and neither template nor tokenizer adds it."""
    added = tokenizer.added_tokens_decoder.get(index)
    if added is None or not added.special:
        return False
    ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    used = tokenizer.chat_template
    templates = list(used.values()) if isinstance(used, dict) else [used or ""]
    return token not in ends and not any(token in template for template in templates)


def _remove_tokens(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> bool:
    """Remove special tokens from the tokenizer. transformers has no call for this.

    Return False, and change nothing, if the id of another token would change.
    """
    kept = {token: index for token, index in tokenizer.get_vocab().items() if token not in tokens}
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] not in tokens]
    vocabulary = written["model"]["vocab"]
    if isinstance(vocabulary, dict):  # some vocabularies list their added tokens too
        written["model"]["vocab"] = {token: index for token, index in vocabulary.items() if token not in tokens}
    without = Tokenizer.from_str(json.dumps(written))
    if without.get_vocab() != kept:
        return False
    tokenizer._tokenizer = without
    return True
