"""The arms of `benchmarks/engine.py`: stock TRL and agentrl's engines on the same work, with a clock in each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from made_up import TOOL, Lengths, MadeUpBench, MadeUpRollouts, random_model
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from agentrl.chat.format import ChatFormat
from agentrl.config.compose import compose
from agentrl.config.networks import read_network
from agentrl.config.schema import Config
from agentrl.config.sequences import Lengths as PlanLengths
from agentrl.core.engine import Decoding, Episode
from agentrl.cost.gpus import GPUS
from agentrl.cost.time import Clock as PlannedClock
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.objectives.pact import anchor_gates
from agentrl.rollout.sampler import Request, Sampler, Session, Turn, always_false
from agentrl.trainers.arguments import grpo_arguments
from agentrl.trainers.build import rl_trainer

BARRIER = "barrier"  # an engine: packed updates, and rollouts whose turns and tools wait for each other


@dataclass(frozen=True)
class Workload:
    """What is trained on: `prompts` prompts a rollout batch, `rollouts` rollouts of each."""

    model: str  # 'tiny', a name in made_up.SHAPES, or the directory of a checkpoint
    lengths: Lengths
    prompts: int = 2
    together: int = 1  # prompts of an update
    rollouts: int = 8
    tool_seconds: float = 0.0
    sampled: bool = False  # episodes are played; otherwise they are made up
    q: float = 0.4  # PACT's share of anchored prompts
    device: str = "cpu"
    bf16: bool = False
    budget: int = 30_000  # tokens of a forward pass
    checkpointing: bool = False  # activations are computed again in the backward pass

    def config(self, algo: str, engine: str | None) -> Config:
        """The run's configuration."""
        turn, longest = self.lengths.sampled, self.lengths.completion
        overrides = [
            f"algo={algo}",
            f"hardware={'cpu' if self.device == 'cpu' else 'gpu'}",
            f"hardware.bf16={str(self.bf16).lower()}",
            f"model.gradient_checkpointing={str(self.checkpointing).lower()}",
            f"trainer.prompts_per_batch={self.prompts}",
            f"trainer.minibatch_prompts={self.together}",
            f"trainer.tokens_per_batch={self.budget}",
            f"rollout.num_generations={self.rollouts}",
            f"rollout.max_turns={self.lengths.turns}",
            f"rollout.max_turn_tokens={turn}",
            f"rollout.max_completion_tokens={longest + self.lengths.turns * 16}",  # the template's own tokens
            f"rollout.max_prompt_tokens={2 * self.lengths.prompt}",
            f"seed={self.seed() if algo == 'pact' else 0}",
            "trainer.max_steps=1000000",
            "trainer.warmup_steps=0",
        ]
        overrides += [f"trainer.engine={engine}"] if engine else []
        overrides += [f"algo.q={self.q}"] if algo == "pact" else []
        return compose(overrides)

    def seed(self) -> int:
        """The first seed whose first batch anchors exactly the share q of the prompts (rounded)."""
        wanted, rows = round(self.q * self.prompts), range(self.prompts)
        return next(seed for seed in range(10_000) if int(anchor_gates(self.q, seed, 0, rows).sum()) == wanted)


class Clock:
    """Seconds and forwarded tokens of each part of a step, one inside the other counted once."""

    def __init__(self, device: str) -> None:
        self.seconds: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self._open: list[str] = ["step"]
        self._cuda, self._since = device != "cpu", time.perf_counter()

    def _switch(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def reset(self) -> None:
        """Begin at zero, now."""
        self._switch()
        self.seconds.clear()
        self.tokens.clear()

    def stop(self) -> None:
        """Count what has passed."""
        self._switch()

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count the time in `owner.method` as `part`."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return original(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        setattr(owner, method, timed)

    def count(self, decoder: torch.nn.Module) -> None:
        """Count the tokens that go through `decoder`, padding included."""

        def seen(_: Any, args: Any, kwargs: Any) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            shown = kwargs["inputs_embeds"][..., 0] if ids is None else ids
            self.tokens[self._open[-1]] += shown.numel()

        decoder.register_forward_pre_hook(seen, with_kwargs=True)


class Arm:
    """A trainer that makes rollout batches of a workload, one after the other."""

    def __init__(self, workload: Workload, algo: str, engine: str | None, out: Path) -> None:
        self._barrier = engine == BARRIER
        self.workload, self.config = workload, workload.config(algo, "packed" if self._barrier else engine)
        self.clock = Clock(workload.device)
        self.model = self._model()
        self.chat = load_chat(self.config.model, Needs(tools=True, system=False))
        self.bench = MadeUpBench(
            self.chat, workload.lengths, workload.prompts, workload.tool_seconds, in_threads=not self._barrier
        )
        self.rollouts = MadeUpRollouts(self.chat, workload.lengths, seed=1)
        self.trainer = self._stock(out) if engine is None else self._ours(out)
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(OneBatch(workload.prompts // workload.together, self.clock))
        self.clock.watch(self.trainer, "training_step", "forward")
        self.clock.watch(self.trainer, "_generate_and_score_completions", "scoring")
        self.clock.watch(self.trainer.accelerator, "backward", "backward")
        self.clock.count(self.model.get_decoder())

    def run(self) -> Clock:
        """Play and train one rollout batch; the clock that ran meanwhile."""
        self.trainer.train()
        return self.clock

    def distinct_tokens(self) -> int:
        """Tokens of a rollout batch: each prompt once, and every completion."""
        one = self.workload.lengths.prompt + self.workload.rollouts * self.workload.lengths.completion
        return one * self.workload.prompts

    def update_operations(self) -> float:
        """Floating-point operations that the updates of a rollout batch need: those of distinct tokens.

        2 for each weight in the forward pass and 4 in the backward pass; attention over the pairs that see each other;
        the head at the tokens of completions alone. What checkpointing computes again does not count.
        """
        lengths, rows, config = self.workload.lengths, self.workload.rollouts, self.model.config
        table = self.model.get_input_embeddings().weight.numel()
        weights = sum(one.numel() for one in self.model.parameters()) - table
        pairs = lengths.prompt**2 / 2 + rows * (lengths.completion * lengths.prompt + lengths.completion**2 / 2)
        attention = 2 * pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        scored = rows * lengths.completion
        return 6 * (weights * self.distinct_tokens() + self.workload.prompts * (table * scored + attention))

    def planned(self, gpu: str) -> dict[str, float]:
        """Seconds that `agentrl plan` computes for a rollout batch on GPUs of a kind."""
        lengths, network = self.workload.lengths, self.model.config.to_dict()
        size = float(sum(one.numel() for one in self.model.parameters()))
        sampled = lengths.sampled * lengths.turns
        expected = PlanLengths(lengths.prompt, lengths.completion, sampled, lengths.completion, self.workload.rollouts)
        clock = PlannedClock(self.config, read_network(network, size), GPUS[gpu])
        batch = clock.batch(expected)
        seconds = {"sampling": batch.sampling, "scoring": batch.scoring, "update": batch.update}
        return {part: round(value, 4) for part, value in seconds.items() if part != "sampling" or self.workload.sampled}

    def _model(self) -> Any:
        workload = self.workload
        if workload.model in ("tiny",) or Path(workload.model).exists():
            return load_model(self.config.model)
        return random_model(workload.model, workload.device, torch.float32)

    def _arguments(self, out: Path) -> Any:
        return grpo_arguments(self.config, out)

    def _ours(self, out: Path) -> Trainer:
        trainer_class = rl_trainer(self.config.algo)
        assert trainer_class is not None
        trainer = trainer_class(
            model=self.model,
            chat=self.chat,
            args=self._arguments(out),
            config=self.config,
            bench=self.bench,
            tasks=self.bench.tasks("train"),
        )
        if self.workload.sampled:
            if self._barrier:
                trainer.engine.sampler = Barrier(trainer.engine.sampler)
            self.clock.watch(trainer.engine, "rollout", "sampling")
        else:
            trainer.engine = self.rollouts
        return trainer

    def _stock(self, out: Path) -> Trainer:
        """TRL's own trainer and loop over turns, a group of rollouts in each forward pass."""
        workload, args, tasks = self.workload, self._arguments(out), self.bench.tasks("train")
        args.per_device_train_batch_size = workload.rollouts
        args.gradient_accumulation_steps, args.steps_per_generation = workload.together, workload.prompts
        args.generation_batch_size = workload.prompts * workload.rollouts
        args.max_tool_calling_iterations = workload.lengths.turns - 1
        made: dict[str, Any] = {"environment_factory": Row} if workload.sampled else {"rollout_func": self._made_up}
        trainer = GRPOTrainer(
            model=self.model,
            reward_funcs=[lambda completions, **_: torch.rand(len(completions)).tolist()],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": task.prompt} for task in tasks]),
            processing_class=self.chat.tokenizer,
            **made,
        )
        if workload.sampled:
            self.clock.watch(trainer, "_generate", "sampling")
            offer_tools(trainer, self.chat, self.bench)
        return trainer

    def _made_up(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        tasks = {str(task.prompt): task for task in self.bench.tasks("train")}
        asked = [tasks[str(prompt)] for prompt in prompts]
        played = self.rollouts.rollout([Episode(task, self.bench.environment(task)) for task in asked])
        return {
            "prompt_ids": [one.prompt_ids for one in played],
            "completion_ids": [one.completion_ids for one in played],
            "logprobs": None,
            "env_mask": [one.policy_mask for one in played],
        }


class Barrier:
    """A sampler whose sessions answer once every turn that was asked for has ended."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler, self.ends, self.context = sampler, sampler.ends, sampler.context

    @contextmanager
    def session(self, decoding: Decoding | None) -> Iterator[BarrierSession]:
        with self._sampler.session(decoding) as session:
            yield BarrierSession(session)


class BarrierSession:
    """See `Barrier`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        turns = self._session.sample(requests)
        while len(turns) < len(requests):
            turns |= self._session.sample([])
        return turns


class Row:
    """What TRL insists on when tools vary by row."""

    def reset(self, **row: Any) -> None:
        pass

    def placeholder(self) -> None:
        """Never offered to the model; TRL looks for at least one public method.

        Returns:
            Nothing.
        """


def offer_tools(trainer: Any, chat: ChatFormat, bench: MadeUpBench) -> None:
    """Give TRL's loop the made-up tool, and let it read every turn as a call of it."""
    trainer.chat_template = chat.template
    call = {"type": "function", "function": {"name": TOOL, "arguments": {}}}
    grpo_trainer.parse_response = lambda *_, **__: {"role": "assistant", "content": "", "tool_calls": [call]}
    environment = bench.environment(bench.tasks("train")[0])
    tools = {TOOL: lambda: environment.call(TOOL, {}, 0).observation}
    original = trainer._generate

    def generate(prompts: list[Any]) -> Any:
        rows = len(prompts)
        trainer._batch_environments = list(range(rows))
        trainer._env_tools = {row: bench.tasks("train")[0].tools for row in range(rows)}
        trainer._sync_tool_dicts, trainer._async_tool_dicts = [tools] * rows, [{}] * rows
        return original(prompts)

    trainer._generate = generate


class OneBatch(TrainerCallback):
    """Ends training after one rollout batch, `updates` updates, and lets the clock run from its begin to its end."""

    def __init__(self, updates: int, clock: Clock) -> None:
        self._updates, self._clock = updates, clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._clock.reset()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self._updates:
            self._clock.stop()
            control.should_training_stop = True
        return control
