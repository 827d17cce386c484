"""Make the packaged tiny model for minihop: a tokenizer and a Qwen3 network of a million weights, pre-trained here.

The result is what an instruct model is before post-training: it writes well-formed calls, solves one- and two-hop
questions, has seen reference traces in its context, and fails on most longer chains. `make tiny` (python -m
agentrl.tiny.recipe OUT) rebuilds it from the seed.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.chat_template_utils import qwen3_template

from agentrl.benches import minihop
from agentrl.chat.format import ChatFormat
from agentrl.chat.trace_messages import context_messages
from agentrl.chat.trace_tokens import tokenize_trace
from agentrl.core.bench import Task
from agentrl.core.trajectory import Component

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = [
    *("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>", "<answer>", "</answer>"),
]
# Qwen's tool format without its instructions: on a CPU, each turn pays for every token of the prompt.
CHAT_TEMPLATE = """\
{%- if tools or messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
    {%- if tools %}
        {{- '<tools>\\n' }}
        {%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
        {{- '</tools>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {%- if message.reasoning_content %}
                {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n' }}
            {%- endif %}
            {{- message.content or '' }}
            {%- for call in message.tool_calls or [] %}
                {%- set function = call.function or call %}
                {{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
                {{- function.arguments if function.arguments is string else function.arguments | tojson }}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


Row = tuple[list[int], list[int]]  # ids and labels of one episode


@dataclass(frozen=True)
class Phase:
    """A part of pre-training with its own optimizer and its own mix of chain lengths."""

    name: str
    steps: int
    drill_steps: int  # half of these first steps, every second one, are copying drills
    learning_rate: float
    hops: tuple[tuple[int, float], ...]  # chain length, and its share among the episodes without a reference trace
    traced: float = 0.3  # share of the episodes that show a reference trace of one to three hops in the user's message


# Long chains come last and rarely. A model that never saw one fails at its first call, and rollouts cannot mend that.
PHASES = (
    Phase("base", steps=1500, drill_steps=400, learning_rate=3e-3, hops=((2, 0.1), (1, 0.9))),
    Phase("b2", steps=150, drill_steps=0, learning_rate=5e-4, hops=((1, 0.62), (2, 0.3), (3, 0.08))),
)


def build_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on rendered episodes. It can write any text, and minihop's in few tokens.

    Names, tool names and words after a blank are never merged with their neighbours. So a name has the same tokens
    everywhere and can be copied. The JSON between them may merge.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"get_[a-z]+|[A-Z][a-z]+| (?!get_)[a-z]+|'s"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    untagged = fast_tokenizer(Tokenizer(models.BPE()))
    chat = ChatFormat(untagged, None, "content")
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(4000):
        task = minihop.generate_task(f"bpe-{len(texts)}", rng.choice(train_chains(rng.choice([1, 2, 3]))), rng)
        trace = minihop.expert_trace(task)
        messages = context_messages(task, trace, "message", "content")
        text = chat.text(
            [*messages, {"role": "assistant", "content": f"<answer>{task.answer}</answer>"}], task.tools, True
        )
        for tag in SPECIAL_TOKENS + TAGS:
            text = text.replace(tag, "\x00")
        texts += [piece for piece in text.split("\x00") if piece]
    tokenizer.train_from_iterator([*texts, " ".join(minihop.NAMES)], trainer)
    tokenizer.add_tokens(TAGS)
    return fast_tokenizer(tokenizer)


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers with Qwen's special tokens, our template and TRL's parser of Qwen3's calls."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=16384,
        clean_up_tokenization_spaces=False,
    )
    fast.response_template = qwen3_template
    return fast


def build_model(vocab_size: int, hidden_size: int = 128, layers: int = 4) -> Qwen3ForCausalLM:
    """Build the untrained network."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=hidden_size // 4,
            max_position_embeddings=16384,
            tie_word_embeddings=True,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=None,
        )
    )


def train_chains(hops: int) -> list[tuple[minihop.Relation, ...]]:
    """Return the chains that the model may see: those of minihop's training split."""
    return [chain for chain in minihop.chains(hops) if not minihop.is_held_out(chain)]


def base_episode(index: int, rng: random.Random, phase: Phase) -> tuple[Task, bool]:
    """Make one pre-training episode, and say whether its reference trace is in the user's message."""
    with_trace = rng.random() < phase.traced
    lengths, shares = zip(*phase.hops, strict=True)
    hops = rng.choice([1, 2, 3]) if with_trace else rng.choices(lengths, shares)[0]
    return minihop.generate_task(f"{phase.name}-{index}", rng.choice(train_chains(hops)), rng), with_trace


def encode_episode(chat: ChatFormat, task: Task, with_trace: bool) -> Row:
    """Return ids and labels of an episode; every assistant token is a target."""
    trace = minihop.expert_trace(task)
    shown = task
    if with_trace:
        shown = Task(task.id, context_messages(task, trace, "message", chat.reasoning), task.tools, task.answer, "")
    spoken = minihop.without_previews(trace)
    tokens = tokenize_trace(chat, shown, spoken, with_answer=True)
    observed = (Component.OBSERVATION,)
    labels = [-100 if kind in observed else token for token, kind in zip(tokens.ids, tokens.component, strict=True)]
    return tokens.prompt_ids + tokens.ids, [-100] * len(tokens.prompt_ids) + labels


def collate(rows: list[Row], pad: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right to a batch (B, L) of ids, attention mask and labels."""
    length = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
    }


def copy_drill(names: list[int], rng: random.Random) -> Row:
    """Make a copying drill: a list of name tokens, and a rotation of it as the target.

    The model learns to find a name's successor by content. All calls depend on this skill, and without drills it takes
    several times as long to learn.
    """
    shown = rng.sample(names, rng.randint(4, 32))
    start = rng.randrange(len(shown))
    rotated = shown[start:] + shown[:start]
    return shown + rotated, [-100] * (len(shown) + 1) + rotated[1:]


def episodes(chat: ChatFormat, phase: Phase, batch: int, seed: int) -> Iterator[list[Row]]:
    """Yield endless batches of encoded episodes of `phase`, with drills among the first."""
    rng = random.Random(f"tiny/{seed}")
    names = [chat.ids(name)[0] for name in minihop.NAMES]
    for step in count():
        if step < phase.drill_steps and step % 2:
            yield [copy_drill(names, rng) for _ in range(batch)]
        else:
            yield [encode_episode(chat, *base_episode(step, rng, phase)) for _ in range(batch)]


def pretrain(
    model: Qwen3ForCausalLM,
    batches: Iterator[list[Row]],
    pad: int,
    steps: int,
    learning_rate: float,
    log_every: int = 50,
) -> list[float]:
    """Train on the next token of fresh episodes; return the loss of every step in nats per target token.

    The learning rate warms up over 50 steps, stays constant, and decays to zero by a cosine from 2/5 of the steps on.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        decay = max(0.0, step / steps - 0.4) / 0.6
        return min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * decay)) / 2

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses: list[float] = []
    started = time.perf_counter()
    model.train()
    for step, rows in enumerate(islice(batches, steps)):
        loss = model(**collate(rows, pad)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if log_every and (step + 1) % log_every == 0:
            recent = sum(losses[-log_every:]) / log_every
            print(f"{step + 1}/{steps}  loss {recent:.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    return losses


def write(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint. A reply ends at the tokenizer's end token."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def build(out: Path, seed: int, vocab_size: int = 1536, batch: int = 32) -> None:
    """Train tokenizer and model and write the checkpoint to `out`; about half an hour on one core."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocab_size, seed)
    model = build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    for number, phase in enumerate(PHASES):
        batches = episodes(ChatFormat(tokenizer, None, "content"), phase, batch, seed + number)
        pretrain(model, batches, tokenizer.pad_token_id, phase.steps, phase.learning_rate)
    write(model, tokenizer, out)


def command_line(recipe: Callable[..., None], doc: str | None) -> None:
    """`python -m <module of a recipe> OUT [--seed N]`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    recipe(**vars(parser.parse_args()))


if __name__ == "__main__":
    command_line(build, __doc__)
