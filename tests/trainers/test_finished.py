"""A rollout batch that fails costs itself alone: the finished updates are saved, as if between two batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentrl.core import stop
from agentrl.core.errors import UserError
from agentrl.core.stop import CommonError, together
from agentrl.rollout.vllm_server import seed_of
from agentrl.trainers.finished import FinishedUpdates
from tests.support.helpers import make_trainer, small
from tests.support.vllm_network import network
from tests.trainers.test_ahead import CHOSEN, MOVING, SHORT, TWO_UPDATES, At, fingerprint, logged, trainer_at

KEYS = (*SHORT, *TWO_UPDATES, *MOVING, "trainer.max_steps=6", "trainer.save_steps=0")


def train(make: Callable[[], Any], end: Any = None, begin: Path | None = None) -> Any:
    trainer = make()
    trainer.add_callback(At(end=end))
    trainer.train(resume_from_checkpoint=begin and str(begin))
    return trainer


def check_failed_batch(out: Path, make: Callable[[Path], Any], broken: set[str], error: str) -> None:
    """Fail in the batch after update 2; the checkpoint is the one of an undisturbed run, and leads to its end."""
    saving = lambda step, control: setattr(control, "should_save", step == 2)  # noqa: E731
    whole = train(lambda: make(out / "whole"), saving)
    failing = make(out / "failed")
    failing.add_callback(At(end=lambda step, _: broken.add("now") if step == 2 else None))
    with pytest.raises(UserError, match=error):
        failing.train()
    broken.clear()
    saved, undisturbed = (out / name / ".writing" / "checkpoint-2" for name in ("failed", "whole"))
    for name in ("rng_state.pth", "optimizer.pt", "scheduler.pt"):
        one, other = (torch.load(folder / name, weights_only=False) for folder in (saved, undisturbed))
        assert str(one) == str(other), name
    again = train(lambda: make(out / "failed"), begin=saved)
    assert logged(again) == logged(whole) and len(logged(again)) == 6
    assert fingerprint(again.model) == fingerprint(whole.model)
    assert again.state.num_input_tokens_seen == whole.state.num_input_tokens_seen


@pytest.mark.slow
def test_a_server_that_dies_costs_the_batch_in_flight(tmp_path: Path) -> None:
    broken: set[str] = set()
    with network() as (stand_in, _, _):
        say, second = stand_in.say, seed_of("0 step 2 0", 1, 0)

        def answer(body: Any) -> Any:
            if broken and body["seed"] == second:
                raise RuntimeError("the engine died")
            return say(body)

        stand_in.say = answer
        check_failed_batch(tmp_path, lambda out: trainer_at(stand_in.url, out, 0, *KEYS), broken, "vLLM server failed")


def test_a_judge_that_fails_costs_the_batch_in_flight(tmp_path: Path) -> None:
    """Sampled in this process, with random numbers that the checkpoint must not have lost."""
    keys, broken = tuple(key for key in (*CHOSEN, *KEYS) if not key.startswith("vllm")), set[str]()

    def make(out: Path) -> Any:
        trainer = make_trainer(small(*keys, "bench.train_tasks=4", "trainer.warmup_steps=0"), out)
        rewards_of = trainer.rewards_of

        def judged(task: Any, played: Any) -> Any:
            if broken:
                raise UserError("the judge is down")
            return rewards_of(task, played)

        trainer.rewards_of = judged
        return trainer

    check_failed_batch(tmp_path, make, broken, "the judge is down")


def test_with_several_processes_all_must_have_failed() -> None:
    """Saving is a collective: it waits for ever for a process that has not failed."""
    for error, expected in ((UserError("here"), []), (CommonError("everywhere"), ["set back", "saved"])):
        done: list[str] = []
        two: Any = SimpleNamespace(num_processes=2)
        trainer = SimpleNamespace(accelerator=two, save_now=partial(done.append, "saved"))
        finished = FinishedUpdates(trainer)
        finished._set_back = partial(done.append, "set back")
        with pytest.raises(UserError), finished.saved_on_failure():
            raise error
        assert done == expected


def test_a_failure_in_one_process_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert together(lambda: 3) == 3

    def fails() -> None:
        raise UserError("the server is gone")

    with pytest.raises(CommonError, match="the server is gone"):
        together(fails)
    monkeypatch.setattr(stop, "any_process", lambda here: True)  # as if another process had failed
    monkeypatch.setattr(stop, "gather_object", lambda mine: [*mine, "the other server is gone"])
    with pytest.raises(CommonError, match="the other server is gone"):
        together(lambda: 3)
