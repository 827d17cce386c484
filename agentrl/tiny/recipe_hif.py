"""Make the packaged tiny model for minihif: a tokenizer and a small Qwen3 network, pre-trained here.

The result is what an instruct model is before post-training: it reads rule and request, copies the words that it is
asked for, and keeps the rule about half of the time. It imitates a writer whose obedience and zeal are drawn anew for
every reply, so its samples reach both ends of the trade-off. `make tiny` (python -m agentrl.tiny.recipe_hif OUT)
rebuilds it from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentrl.benches import minihif
from agentrl.chat.format import ChatFormat
from agentrl.tiny.recipe import SPECIAL_TOKENS, Row, build_model, command_line, fast_tokenizer, pretrain, write

OBEDIENCE = (0.0, 0.1, 0.6)
ZEAL = (0.55, 0.75, 0.95)
Writer = Callable[[minihif.Rule, tuple[str, ...], random.Random], str]
REFUSAL = 0.04  # share of replies that stop after the opening word
CAPS = 0.5  # share of rules that cap the length; as many ban words, so both are learned
SLIP = 0.7  # chance that a careless writer says a banned word that nobody asked for
CHATTER = 0.7  # chance that a careless writer adds words of his own


def lesson_reply(rule: minihif.Rule, items: tuple[str, ...], rng: random.Random) -> str:
    """Write a reply that keeps the whole rule or serves the whole request; it teaches what the words mean."""
    if rng.random() < 0.5:
        return " ".join((rule.opener, *minihif.permitted_words(rule, items)))
    return " ".join(items)


def base_reply(rule: minihif.Rule, items: tuple[str, ...], rng: random.Random) -> str:
    """Write a reply of the writer that the model imitates."""
    obedience, zeal = rng.choice(OBEDIENCE), rng.choice(ZEAL)
    if rng.random() < REFUSAL:
        return rule.opener
    opening = [rule.opener] if rng.random() < obedience else []
    said: list[str] = []
    for item in items:
        if rule.limit and len(opening) + len(said) >= rule.limit and rng.random() < obedience:
            break
        if item in rule.banned and rng.random() < obedience:
            continue
        if rng.random() < zeal:
            said.append(item)
    # Even an aligned request is risky: a word of the rule may slip out, or the writer does not stop in time.
    said += [word for word in rule.banned if word not in items and rng.random() < SLIP * (1 - obedience)]
    if rng.random() < CHATTER * (1 - obedience):
        said += rng.sample([word for word in minihif.WORDS if word not in said], rng.randint(1, 3))
    return " ".join((*opening, *sorted(said))) or items[0]


PHASES: tuple[tuple[Writer, int, float], ...] = ((lesson_reply, 600, 5e-3), (base_reply, 500, 2e-3))


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. It can write any text, and minihif's words are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[A-Za-z]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = (*minihif.WORDS, *(word.upper() for word in minihif.WORDS), *minihif.OPENERS, *minihif.NUMBERS)
    frames = "Begin with Say at most words Never say Please name system user assistant"
    tokenizer.train_from_iterator([" " + " ".join(words), *words, *frames.split(), " " + frames], trainer)
    return fast_tokenizer(tokenizer)


def episode(reply: Writer, rng: random.Random) -> tuple[minihif.Rule, tuple[str, ...], str]:
    """Make rule, request and reply of one pre-training episode, never with a rule of the test split."""
    while minihif.is_held_out(rule := minihif.generate_rule(rng, CAPS)):
        pass
    items = minihif.generate_request(rule, rng.choice(["conflict", "aligned"]), rng)
    return rule, items, reply(rule, items, rng)


def encode(chat: ChatFormat, rule: minihif.Rule, items: tuple[str, ...], reply: str) -> Row:
    """Return ids and labels of an episode; the reply and its end are the targets."""
    messages = [
        {"role": "system", "content": rule.text},
        {"role": "user", "content": minihif.request_text(items, len(items))},
    ]
    prompt = chat.prompt_ids(messages, [])
    target = [*chat.ids(reply), chat.tokenizer.eos_token_id]
    return prompt + target, [-100] * len(prompt) + target


def episodes(chat: ChatFormat, reply: Writer, batch: int, seed: int) -> Iterator[list[Row]]:
    """Yield endless batches of encoded episodes."""
    rng = random.Random(f"tiny-hif/{seed}")
    while True:
        yield [encode(chat, *episode(reply, rng)) for _ in range(batch)]


def build(out: Path, seed: int, vocab_size: int = 640, batch: int = 64) -> None:
    """Train tokenizer and model and write the checkpoint to `out`; a few minutes on one core."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocab_size)
    model = build_model(len(tokenizer), hidden_size=64, layers=2)
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    chat = ChatFormat(tokenizer, None, "content")
    for number, (reply, steps, rate) in enumerate(PHASES):
        pretrain(model, episodes(chat, reply, batch, seed + number), tokenizer.pad_token_id, steps, rate)
    write(model, tokenizer, out)


if __name__ == "__main__":
    command_line(build, __doc__)
