"""rollout.ahead=1: which weights sample which batch, what corrects for it, and what a checkpoint holds."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

from agentrl.core.errors import UserError
from agentrl.core.trajectory import Component, ToolCall, Trajectory
from agentrl.rollout.vllm_server import seed_of
from agentrl.trainers.ahead import Ahead, Batch
from agentrl.trainers.row_order import EpochSampler
from tests.support.helpers import make_trainer, small
from tests.support.vllm_network import CHOSEN, network

TWO_UPDATES = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=1")  # of each rollout batch
SHORT = ("rollout.max_turns=1", "rollout.max_turn_tokens=3")
MOVING = (
    "trainer.learning_rate=1e-3",
    "algo.entropy_coef=1",
    "rollout.temperature=3",
)  # which moves the policy whatever is earned
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time")


class At(TrainerCallback):
    """Does something at the beginning or the end of a step."""

    def __init__(self, begin: Callable[[int, Any], None] | None = None, end: Callable[[int, Any], None] | None = None):
        self._begin, self._end = begin, end

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._begin is not None:
            self._begin(state.global_step, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._end is not None:
            self._end(state.global_step, control)


def trainer_at(url: str, out: Path, ahead: int, *overrides: str, chosen: tuple[str, ...] = CHOSEN) -> Any:
    keys = (*chosen, f"vllm.url={url}", f"rollout.ahead={ahead}", "trainer.warmup_steps=0", "bench.train_tasks=4")
    trainer = make_trainer(small(*keys, *overrides), out)
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer: Any) -> list[dict[str, float]]:
    """What was logged at each step, without what differs between equal runs."""
    return [
        {name: value for name, value in entry.items() if name not in TIMES}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def fingerprint(model: Any) -> float:
    """A number that differs where weights differ."""
    return sum(float(one.detach().double().abs().sum()) for one in model.parameters())


@pytest.mark.slow
def test_weights_that_do_not_move_give_the_same_run(tmp_path: Path) -> None:
    """Also the same prompts: two batches are an epoch."""
    logs, said = [], []
    for ahead in (0, 1):
        with network() as (stand_in, _, _):
            still = (*TWO_UPDATES, *SHORT, "trainer.learning_rate=1e-30", "trainer.max_steps=6")
            trainer = trainer_at(stand_in.url, tmp_path, ahead, *still)
            played: list[Any] = []
            trainer.add_callback(At(end=lambda step, _, t=trainer, p=played: p.append(list(t._trajectories))))
            trainer.train()
            logs.append(logged(trainer))
            said.append(played)
    assert [entry.pop("sampler/behind") for entry in logs[1] if "sampler/behind" in entry] == [0, 2, 2]
    assert logs[0] == logs[1] and len(logs[0]) == 6
    assert said[0] == said[1] and said[0][0] != said[0][2]


def test_a_batch_is_sampled_by_the_weights_of_one_batch_before(tmp_path: Path) -> None:
    with network() as (stand_in, model, taken):
        trainer = trainer_at(stand_in.url, tmp_path, 1, *TWO_UPDATES, *SHORT, *MOVING, "trainer.max_steps=8")
        weights: dict[int, float] = {}
        trainer.add_callback(At(begin=lambda step, _: weights.setdefault(step, fingerprint(trainer.model))))
        steps = {seed_of(f"0 step {s} 0", episode, 0): s for s in (0, 2, 4, 6, 8) for episode in range(4)}
        sampled_by: dict[int, set[float]] = {}
        say = stand_in.say

        def note(body: Any) -> Any:
            if body["seed"] in steps:
                sampled_by.setdefault(steps[body["seed"]], set()).add(fingerprint(model))
            return say(body)

        stand_in.say = note
        trainer.train()
    assert len(set(weights.values())) == 8
    assert sampled_by == {0: {weights[0]}, 2: {weights[0]}, 4: {weights[2]}, 6: {weights[4]}}
    assert len(taken) == 3  # the last batch trains, and nobody samples with what it leaves
    ratios = [entry["sampler/ratio_max"] for entry in logged(trainer) if "sampler/ratio_max" in entry]
    assert ratios[0] == pytest.approx(1, abs=1e-4) and min(ratios[1:]) > 1.001


ON_MINIHIF = ("vllm.mode=server", "model=tiny_hif", "rollout.num_generations=2", "rollout.max_completion_tokens=24")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "level"), [(a, "token") for a in ("pact", "grpo", "chord", "luffy")] + [("hipo", "sequence_mean")]
)
def test_every_method_weighs_what_the_step_before_sampled(algo: str, level: str, tmp_path: Path) -> None:
    """By the log-probs of the older weights themselves, which a second network keeps."""
    tools = (f"algo={algo}", *CHOSEN[1:])
    chosen = tools if algo != "hipo" else ("algo=hipo", *ON_MINIHIF, *CHOSEN[5:])
    with network(chosen=chosen) as (stand_in, _, _):
        trainer = trainer_at(stand_in.url, tmp_path, 1, *MOVING, chosen=chosen)
        found: list[tuple[Any, dict[str, torch.Tensor]]] = []

        def keep(step: int, _: Any) -> None:
            found.append(
                (trainer._buffered_inputs, {n: p.detach().clone() for n, p in trainer.model.named_parameters()})
            )

        trainer.add_callback(At(begin=keep))
        trainer.train()
    for older, current, newer in zip(found, found[1:], found[2:], strict=False):
        (batch,) = newer[0]
        old, sampled = (scores(trainer, weights, batch) for weights in (current[1], older[1]))
        mask = batch["completion_mask"] * batch["tool_mask"]
        difference = (old - sampled).masked_fill(mask == 0, 0)
        if level == "sequence_mean":
            difference = (difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand(mask.shape)
        weight = difference.exp().clamp(max=3)
        kept = mask == 1
        torch.testing.assert_close(batch["importance_sampling_ratio"][kept], weight[kept], atol=1e-4, rtol=1e-4)
        assert (weight[kept] - 1).abs().max() > 1e-3


def scores(trainer: Any, weights: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    """Log-probs (B, C) of the completions under the prompts and other weights, by the plain network."""
    for name, value in trainer.model.named_parameters():
        value.data.copy_(weights[name])
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions)
        logps = (output.logits[:, -width - 1 : -1] / trainer.temperature).log_softmax(-1)
    return logps.gather(2, batch["completion_ids"][..., None])[..., 0]


@pytest.mark.slow
def test_a_resumed_run_trains_on_the_batch_that_was_sampled_ahead(tmp_path: Path) -> None:
    keys = (*SHORT, *MOVING, "trainer.max_steps=4")
    whole, weights = [], []
    for begin in (None, tmp_path / ".writing" / "checkpoint-2"):
        with network() as (stand_in, _, _):
            trainer = trainer_at(stand_in.url, tmp_path, 1, *keys)
            trainer.add_callback(At(end=lambda step, control: setattr(control, "should_save", step == 2)))
            trainer.train(resume_from_checkpoint=begin and str(begin))
            whole.append(logged(trainer))
            weights.append(fingerprint(trainer.model))
            asked = {body["seed"] for path, body in stand_in.asked if path == "/v1/completions"}
            of_step_2 = {seed_of("0 step 2 0", episode, 0) for episode in range(2)}
            assert of_step_2 <= asked if begin is None else not of_step_2 & asked
    assert whole[0] == whole[1] and weights[0] == weights[1]
    assert (tmp_path / ".writing" / "checkpoint-2" / "ahead-0.pt").is_file()


def test_a_checkpoint_gives_back_whatever_the_policy_wrote(tmp_path: Path) -> None:
    """Also an integer that is longer than what torch reads back, as of a policy that repeats a digit."""
    arguments = json.loads('{"x": ' + "1" * 700 + ', "y": [1.5, null, true, "\\ud800", {}], "z": 1e999}')
    message = {"role": "assistant", "content": "é", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    kinds = [Component.TOOL_CALL, Component.OBSERVATION]
    call = ToolCall(0, "f", arguments, "done", error=True)
    played = Trajectory("a", [5], [6, 7], [1, 0], [0, 0], kinds, [message], [call], logprobs=[-0.5, math.nan])
    trainer = SimpleNamespace(accelerator=SimpleNamespace(process_index=0), show_rollout=None)
    saved, loaded = Ahead(trainer), Ahead(trainer)
    saved._next = Batch(step=4, weights=2, rows=[3], trajectories=[played])
    saved.save(tmp_path)
    loaded.load(tmp_path)
    assert loaded._next is not None and loaded._next.trajectories is not None
    (found,) = loaded._next.trajectories
    assert vars(found) | {"logprobs": None} == vars(played) | {"logprobs": None} and str(found) == str(played)


@contextmanager
def held_in_the_second_batch(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A server that does not answer for the batch of step 1, and a trainer; no thread may be left after it."""
    held = threading.Event()
    with network() as (stand_in, _, _):
        say, second = stand_in.say, {seed_of("0 step 1 0", episode, 0) for episode in range(2)}
        stand_in.say = lambda body: held.wait() if body["seed"] in second else say(body)
        yield stand_in, trainer_at(stand_in.url, tmp_path, 1, *SHORT)
        assert not [one for one in threading.enumerate() if one.name in ("rollouts", "vllm")]
        held.set()


def test_an_error_ends_the_batch_in_flight(tmp_path: Path) -> None:
    def end(step: int, _: Any) -> None:
        raise ValueError("stop here")

    with held_in_the_second_batch(tmp_path) as (_, trainer):
        trainer.add_callback(At(end=end))
        with pytest.raises(ValueError, match="stop here"):
            trainer.train()


def test_a_server_that_dies_while_it_samples_ahead_ends_the_run(tmp_path: Path) -> None:
    with held_in_the_second_batch(tmp_path) as (stand_in, trainer):
        trainer.add_callback(At(begin=lambda step, _: stand_in.die() if step == 1 else None))
        with pytest.raises(UserError, match="the vLLM server failed"):
            trainer.train()


def test_the_order_of_later_batches_is_known_before() -> None:
    sampler = EpochSampler(range(7), mini_repeat_count=2, batch_size=2, repeat_count=3, seed=5)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert [order[12 * place :][:4] for place in range(3)] == [
            sampler.rollout_batch(3 * epoch + i) for i in range(3)
        ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_run_that_is_killed_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    """With a batch in flight that is lost: it is sampled again, by the weights that an undisturbed run would use."""
    keys = (*CHOSEN, *SHORT, *TWO_UPDATES, *MOVING, "rollout.ahead=1", "trainer.max_steps=8", "trainer.save_steps=2")
    keys += ("hardware.threads=1", "eval.before=false", "eval.limit=2", "trainer.keep_checkpoints=9")
    late = {seed_of("0 step 6 0", episode, 0) for episode in range(4)}
    metrics = []
    for name in ("whole", "killed"):
        with network() as (stand_in, _, _):
            command = [sys.executable, "-m", "agentrl", *keys, f"vllm.url={stand_in.url}", f"runs_dir={tmp_path}"]
            command += [f"name={name}"]
            if name == "killed":
                kill_with_a_batch_in_flight(command, stand_in, late, tmp_path / name)
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            assert ("resuming from" in done.stdout) == (name == "killed")
        (run,) = (tmp_path / name).glob("*")
        metrics.append((run / "metrics.jsonl").read_text())
        held_ahead = {file.parent.name for file in run.glob("checkpoints/*/ahead-0.pt")}
        assert held_ahead == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert metrics[0] == metrics[1] and len(metrics[0].splitlines()) == 8


def kill_with_a_batch_in_flight(command: list[str], stand_in: Any, seeds: set[int], folder: Path) -> None:
    """Start the run, and kill its worker while the server holds back the turns of some seeds."""
    held, say = threading.Event(), stand_in.say

    def hold_back(body: Any) -> Any:
        if body["seed"] in seeds:
            held.wait()
        return say(body)

    stand_in.say = hold_back
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: list(folder.glob("*/checkpoints/checkpoint-4")), process)
        wait_for(lambda: any(body and body.get("seed") in seeds for _, body in stand_in.asked), process)
        (status,) = folder.glob("*/status.json")
        os.kill(json.loads(status.read_text())["pid"], signal.SIGKILL)
    held.set()


def wait_for(found: Callable[[], Any], process: Any) -> None:
    until = time.monotonic() + 120
    while not found():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
