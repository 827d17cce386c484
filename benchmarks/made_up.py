"""Made-up episodes of chosen lengths: what `benchmarks/engine.py` samples and trains on.

A model with random weights says nothing that a tool could answer. So every turn counts as a tool call here, every tool
answers with the same words, and rewards are drawn. Lengths, token ids and the work they cause are real.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from agentrl.chat.format import ChatFormat
from agentrl.core.bench import Bench, Score, Task
from agentrl.core.engine import Decoding, Episode
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.trajectory import Component, ToolCall, Trajectory

TOOL = "look"
TOOLS = [
    {
        "type": "function",
        "function": {"name": TOOL, "description": "Look.", "parameters": {"type": "object", "properties": {}}},
    }
]
# Qwen3's architecture with random weights: hidden size, layers, heads, key-value heads, size of the MLP.
SHAPES = {
    "25m": (448, 8, 7, 7, 1344),
    "qwen3-0.6b": (1024, 28, 16, 8, 3072),
    "qwen3-1.7b": (2048, 28, 16, 8, 6144),
    "qwen3-4b": (2560, 36, 32, 8, 9728),
}
VOCABULARY = {"25m": 8192}  # tokens; the real families have 151,936


@dataclass(frozen=True)
class Lengths:
    """Tokens of an episode. A completion has `turns` sampled turns and an observation after each but the last."""

    prompt: int
    completion: int
    turns: int
    observation: int = 20

    @property
    def sampled(self) -> int:
        """Tokens of one sampled turn."""
        return (self.completion - (self.turns - 1) * self.observation) // self.turns


class MadeUpBench(Bench):
    """`tasks` tasks whose prompts have `lengths.prompt` tokens; their expert traces are as long as a completion."""

    name = "made_up"
    solve_metric = "solve_rate"

    def __init__(
        self, chat: ChatFormat, lengths: Lengths, tasks: int, tool_seconds: float = 0.0, in_threads: bool = True
    ) -> None:
        self._seconds, self._in_threads, self._lengths, self._chat = tool_seconds, in_threads, lengths, chat
        self._tasks = [self._task(number) for number in range(tasks)]
        # An expert's turn has words, a call and an observation; the words make up the length.
        words = max(lengths.completion // lengths.turns - lengths.observation - 15, 4)
        self._turn = TraceTurn(
            (Chunk("tool_selection", filler(chat, words)),),
            ({"name": TOOL, "arguments": {}},),
            (filler(chat, max(lengths.observation - 8, 1)),),
        )

    def _task(self, number: int) -> Task:
        start = f"Task {number}."
        bare = len(self._chat.prompt_ids([{"role": "user", "content": start}], TOOLS))
        text = f"{start} {filler(self._chat, self._lengths.prompt - bare)}"
        return Task(f"made_up-{number}", [{"role": "user", "content": text}], TOOLS, "none", str(number))

    def tasks(self, split: str, limit: int | None = None, seed: int = 0) -> list[Task]:
        return self._tasks[:limit]

    def environment(self, task: Task) -> MadeUpEnvironment:
        answer = filler(self._chat, max(self._lengths.observation - 8, 1))
        return MadeUpEnvironment(answer, self._seconds, self._in_threads)

    def score(self, task: Task, trajectory: Trajectory) -> Score:
        return Score({self.solve_metric: 0.0}, task.cluster)

    def reward(self, task: Task, trajectory: Trajectory) -> list[float]:
        """A number in [0, 1] for each turn, drawn from what was sampled: the same for every arm."""
        draw = torch.Generator().manual_seed(sum(trajectory.completion_ids))
        return torch.rand(trajectory.num_turns, generator=draw).tolist()

    def expert_trace(self, task: Task) -> ExpertTrace:
        return ExpertTrace(task.id, (self._turn,) * self._lengths.turns, "none", "generated")


class MadeUpEnvironment:
    """Reads every turn as a call, and answers it after `seconds` seconds; `in_threads`: other episodes go on then."""

    def __init__(self, answer: str, seconds: float, in_threads: bool) -> None:
        self._answer, self._seconds = answer, seconds
        self.slow_tools = in_threads and seconds > 0

    def read(self, text: str) -> tuple[str, list[tuple[str, Any]]]:
        return text, [(TOOL, {})]

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        if self._seconds:
            time.sleep(self._seconds)
        return ToolCall(turn, name, arguments, self._answer)


class MadeUpRollouts:
    """A rollout engine that samples nothing: random token ids in the given lengths, for updates alone."""

    def __init__(self, chat: ChatFormat, lengths: Lengths, seed: int) -> None:
        self._chat, self._lengths, self._seed = chat, lengths, seed
        special = set(chat.tokenizer.all_special_ids)
        self._words = torch.tensor([token for token in range(len(chat.tokenizer)) if token not in special])

    def rollout(self, episodes: list[Episode], decoding: Decoding | None = None) -> list[Trajectory]:
        """The same trajectories at every call."""
        draw = torch.Generator().manual_seed(self._seed)
        return [self._play(episode, draw) for episode in episodes]

    def _play(self, episode: Episode, draw: torch.Generator) -> Trajectory:
        lengths = self._lengths
        mask: list[int] = []
        turn: list[int] = []
        messages: list[dict[str, Any]] = []
        for number in range(lengths.turns):
            seen = lengths.observation if number + 1 < lengths.turns else 0
            mask += [1] * lengths.sampled + [0] * seen
            turn += [number] * (lengths.sampled + seen)
            messages.append({"role": "assistant", "content": "..."})
            messages += [{"role": "tool", "name": TOOL, "content": "..."}] if seen else []
        places = torch.randint(len(self._words), (len(mask),), generator=draw)
        return Trajectory(
            task_id=episode.task.id,
            prompt_ids=self._chat.prompt_ids(episode.task.prompt, episode.task.tools),
            completion_ids=self._words[places].tolist(),
            policy_mask=mask,
            turn=turn,
            component=[Component.REASONING if own else Component.OBSERVATION for own in mask],
            messages=messages,
        )


def filler(chat: ChatFormat, tokens: int) -> str:
    """A text of about `tokens` tokens that are not all the same."""
    words, pieces = ["one", "two", "and", "the", "of", "a"], []
    while len(chat.ids(" ".join(pieces))) < tokens:
        pieces += [
            words[(len(pieces) + step * step) % len(words)] for step in range(max((tokens - len(pieces)) // 8, 1))
        ]
    return " ".join(pieces)


def random_model(shape: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A network of `SHAPES` that was never trained."""
    hidden, layers, heads, shared, mlp = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=VOCABULARY.get(shape, 151_936),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=hidden // heads if shape == "25m" else 128,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):  # drawn there: on a CPU it takes a minute for a billion weights
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def tiny_layers(layers: int) -> PreTrainedModel:
    """A network of Qwen3's architecture with many small layers, never trained."""
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
