"""What goes wrong in a run ends it or not as `faults` says, in one line that names the key, and in its status."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from agentrl.config.schema import Faults
from agentrl.core.engine import Decoding, Episode
from agentrl.core.errors import UserError
from agentrl.core.stop import CommonError
from agentrl.rollout.guard import UNAVAILABLE
from agentrl.runner import work, worker
from agentrl.store.run import RunDirectory
from agentrl.store.trouble import explain_trouble
from agentrl.trainers import grpo
from agentrl.trainers.faults import NO_SIGNAL, SAMPLER_KL, Watch, finite_rewards
from agentrl.trainers.passes import CutsUpdates
from tests.support.helpers import composed, make_trainer, rolled_batch, say, small


def faults(**changes: Any) -> Faults:
    return Faults(**{"patience": 10, "nonfinite": "stop", "no_signal": "warn", "dead_tools": "stop", **changes})


# --- gradients that are no numbers --------------------------------------------------------------------------------


class Slope(nn.Module):
    """y = w x with the loss (w x - 1)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.w * x - 1).square().mean()}


def slope_trainer(
    out: Path, xs: list[float], config: Faults, said: list[str], kind: type[Trainer] = Trainer
) -> Trainer:
    """A trainer on `xs` in order, one an update."""
    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=1, num_train_epochs=1, learning_rate=0.1, logging_steps=1,
        lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        logging_nan_inf_filter=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    return kind(
        model=Slope(), args=arguments, train_dataset=[{"x": x} for x in xs], callbacks=[Watch(config, said.append)]
    )


def logged_losses(out: Path, xs: list[float], kind: type[Trainer]) -> list[float]:
    """The loss that is logged after each update; updates that are no numbers are skipped."""
    trainer = slope_trainer(out, xs, faults(nonfinite="skip"), [], kind)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def fit(out: Path, xs: list[float], config: Faults) -> tuple[float, list[str]]:
    """Train on `xs` in order, one an update; the weight and what was said."""
    said: list[str] = []
    trainer = slope_trainer(out, xs, config, said)
    model = trainer.model
    try:
        trainer.train()
    finally:
        out.joinpath("weight").write_text(repr(model.w.item()))
    return model.w.item(), said


def test_an_update_that_is_no_number_ends_the_run_before_the_weights_change(tmp_path: Path) -> None:
    good, _ = fit(tmp_path, [1.0, 2.0], faults())
    with pytest.raises(UserError, match=r"gradient of update 3 is not finite.*faults\.nonfinite=stop"):
        fit(tmp_path, [1.0, 2.0, math.nan, 3.0], faults())
    assert float((tmp_path / "weight").read_text()) == good != 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_or_is_left_out(tmp_path: Path, bad: float) -> None:
    good, _ = fit(tmp_path, [1.0, 2.0, 3.0], faults())
    skipped, said = fit(tmp_path, [1.0, 2.0, bad, 3.0], faults(nonfinite="skip"))
    assert skipped == good
    assert len(said) == 1 and "update 3" in said[0] and "faults.nonfinite=skip" in said[0]


class Logging(CutsUpdates, Trainer):
    """Trains as transformers' own trainer, and logs as ours."""

    compute_loss = Trainer.compute_loss


def test_the_loss_after_such_an_update_is_logged_again(tmp_path: Path) -> None:
    xs = [1.0, math.nan, 2.0, math.inf, 3.0]
    losses = logged_losses(tmp_path, xs, Trainer)
    assert [math.isfinite(loss) for loss in losses] == [True] + [False] * 4  # transformers' sum stays NaN
    losses = logged_losses(tmp_path, xs, Logging)
    assert [math.isfinite(loss) for loss in losses] == [True, False, True, False, True]
    assert losses[::2] == pytest.approx(logged_losses(tmp_path, xs[::2], Logging))


def test_but_not_forever(tmp_path: Path) -> None:
    xs = [1.0, math.nan, 1.0, math.nan, math.nan, math.nan, 1.0]
    with pytest.raises(UserError, match=r"update 6 .*for the 3th time in a row: faults\.patience=3"):
        fit(tmp_path, xs, faults(nonfinite="skip", patience=3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_no_tie(bad: float) -> None:
    rewards = [[0.0, 1.0], [0.5, bad], []]
    with pytest.raises(UserError, match=r"task b has the reward (nan|-?inf);.*faults\.nonfinite=skip"):
        finite_rewards(rewards, ["a", "b", "c"], "stop")
    first, second, third = finite_rewards(rewards, ["a", "b", "c"], "skip")
    assert first == [0.0, 1.0] and all(math.isnan(value) for value in second) and len(second) == 2 and third == []


def test_such_a_reward_ends_a_run_at_its_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "episode_rewards", lambda bench, task, one, *_: [math.inf] * max(one.num_turns, 1))
    trainer = make_trainer(small("algo=grpo", "rollout.max_turns=1", "rollout.max_completion_tokens=64"), tmp_path)
    with pytest.raises(UserError, match="has the reward inf"):
        trainer.train()
    assert trainer.state.global_step == 0


# --- nothing to learn from ----------------------------------------------------------------------------------------


def log(watch: Watch, shares: list[float]) -> None:
    """Log one update after another, every second one a rollout batch's first."""
    state = TrainerState()
    for step, share in enumerate(shares, 1):
        state.log_history += [{"step": step, NO_SIGNAL: share}]
        watch.on_log(TrainingArguments(output_dir="unused", use_cpu=True), state, TrainerControl())
        state.log_history += [{"step": step, "loss": 0.0}]
        watch.on_log(TrainingArguments(output_dir="unused", use_cpu=True), state, TrainerControl())


def test_batches_without_signal_are_counted_in_a_row() -> None:
    said: list[str] = []
    log(Watch(faults(patience=3), said.append), [1, 1, 0.9, 1, 1, 1, 1, 1, 1, 0])
    assert [text.split(" rollout")[0] for text in said] == ["warning: the last 3", "warning: the last 6"]
    assert "faults.no_signal=warn, faults.patience=3" in said[0]
    with pytest.raises(UserError, match=r"^the last 3 rollout batches .*faults\.no_signal=stop"):
        log(Watch(faults(patience=3, no_signal="stop"), said.append), [1, 1, 0.9, 1, 1, 1])


@pytest.mark.parametrize(
    ("values", "silent"),
    [
        (("algo=grpo",), 1.0),
        (("algo=pact", "algo.q=0"), 0.0),
        (("algo=pact", "algo.q=1"), 1.0),  # anchored prompts show no trace
        (("algo=pact", "algo.q=0", "algo.sft_coef=0"), 1.0),
        (("algo=chord",), 0.0),
        (("algo=chord", "algo.mu.peak=0", "algo.mu.valley=0"), 1.0),
        (("algo=luffy",), 0.0),  # the expert earned more than its group
    ],
)
def test_a_trace_is_a_signal_where_all_rollouts_earn_the_same(
    tmp_path: Path, values: tuple[str, ...], silent: float
) -> None:
    trainer = make_trainer(small(*values, "algo.kl_coef=0"), tmp_path, lambda *_: "I do not know.")
    rolled_batch(trainer)
    assert trainer._metrics["train"][NO_SIGNAL] == [silent]


# --- tools that break ---------------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "anything", "arguments": {}}\n</tool_call>'


class Broken:
    def call(self, name: str, arguments: Any, turn: int) -> Any:
        raise ConnectionError("the tool server is gone")


def play(config: Any, out: Path) -> Any:
    trainer = make_trainer(config, out)
    task = trainer.tasks[0]
    texts = [CALL, "I do not know."]

    def speak(request: Any, turn: int) -> list[int]:
        ids = trainer.processing_class(texts[turn], add_special_tokens=False)["input_ids"]
        return [*ids, trainer.processing_class.eos_token_id]

    say(trainer, speak)
    return trainer.engine.rollout([Episode(task, Broken())], Decoding(0.0))[0]


def test_a_broken_environment_is_no_observation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ConnectionError: the tool server is gone.*faults\.dead_tools=continue"):
        play(small("algo=grpo"), tmp_path)
    with pytest.warns(UserWarning, match="the tool server is gone"):
        trajectory = play(small("algo=grpo", "faults.dead_tools=continue"), tmp_path)
    (call,) = trajectory.calls
    assert call.error and call.observation == UNAVAILABLE
    assert trajectory.messages[-1]["content"] == "I do not know."


# --- the machine --------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_names_the_knobs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55)
    for failure in (error.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), MemoryError()):
        text = explain_trouble(failure, tmp_path)
        assert text is not None and text.startswith("out of memory (") and "\n" not in text
        assert "trainer.tokens_per_batch" in text and "eval.batch" in text
    assert explain_trouble(RuntimeError("shapes do not match"), tmp_path) is None
    assert explain_trouble(OSError(errno.ENOSPC, "full", "/elsewhere/file"), tmp_path) is None
    assert "No space left" in str(explain_trouble(OSError(errno.ENOSPC, "full", str(tmp_path / "a")), tmp_path))
    assert "Read-only" in str(explain_trouble(RuntimeError("safetensors: io error: (os error 30)"), tmp_path))


def test_the_status_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}"))
    assert run is not None
    monkeypatch.setattr(worker, "_catch_signals", lambda stop: None)
    half = run.checkpoints_dir / ".writing" / "checkpoint-3"

    def fail(*_: Any) -> bool:
        status = run.status()
        assert (status["status"], status["pid"]) == ("running", os.getpid())
        half.mkdir(parents=True)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(worker, "_work", fail)
    assert worker.main(run.path) == 2
    assert run.status()["status"] == "failed" and "trainer.tokens_per_batch" in run.status()["error"]
    assert not half.exists()
    err = capsys.readouterr().err
    assert err.startswith("agentrl: error: out of memory") and len(err.splitlines()) == 1
    monkeypatch.setattr(worker, "_work", lambda *_: 1 / 0)
    assert worker.main(run.path) == 1
    assert "ZeroDivisionError" in run.status()["error"] and "Traceback" in run.status()["error"]


def test_the_summary_counts_what_every_process_asked_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        def counts(self) -> dict[str, float]:
            return {"verdicts": 3, "cost": 0.5}

    monkeypatch.setattr(work, "gather_object", lambda mine: [*mine, {"verdicts": 4, "cost": 0.25}])
    assert work.count_verdicts(Asked()) == {"verdicts": 7, "cost": 0.75}  # type: ignore[arg-type]
    assert work.count_verdicts(None) is None


def test_an_interrupted_worker_is_no_failure_to_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}"))
    assert run is not None
    monkeypatch.setattr(worker, "_catch_signals", lambda stop: None)
    monkeypatch.setattr(worker, "_work", lambda *_: False)
    assert worker.main(run.path) == 130
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert worker.main(run.path) == 0
    assert run.status()["status"] == "interrupted"


def test_the_process_that_failed_first_is_the_one_that_the_status_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}"))
    assert run is not None
    monkeypatch.setattr(worker, "_catch_signals", lambda stop: None)

    def of_another_process(*_: Any) -> bool:
        raise UserError("the judge is down")

    def of_the_leader(*_: Any) -> bool:
        monkeypatch.setattr(worker, "_work", of_another_process)
        monkeypatch.setenv("RANK", "1")
        assert worker.main(run.path) == 2
        monkeypatch.setenv("RANK", "0")
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(worker, "_work", of_the_leader)
    assert worker.main(run.path) == 1
    assert (run.status()["status"], run.status()["error"]) == ("failed", "the judge is down")


@pytest.mark.parametrize(("rank", "said"), [("0", "agentrl: error: the server is gone\n"), ("1", "")])
def test_what_every_process_met_is_said_once(
    rank: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}"))
    assert run is not None

    def fail(*_: Any) -> bool:
        raise CommonError("the server is gone")

    monkeypatch.setattr(worker, "_catch_signals", lambda stop: None)
    monkeypatch.setattr(worker, "_work", fail)
    monkeypatch.setenv("RANK", rank)
    assert worker.main(run.path) == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("processes", "found"), [(1, 0), (4, 2)])
def test_fewer_gpus_than_processes_are_named(
    processes: int, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ("hardware=gpu", f"hardware.processes={processes}", "trainer.prompts_per_batch=16")
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}", *values))
    assert run is not None
    monkeypatch.setattr(worker, "_catch_signals", lambda stop: None)
    monkeypatch.setattr(worker, "die_with_launcher", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert worker.main(run.path) == 2
    assert f"needs {processes} GPU(s)" in run.status()["error"] and f"sees {found};" in run.status()["error"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a read-only folder needs root")
def test_a_read_only_checkpoint_folder_ends_the_run_in_one_line(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "agentrl", f"runs_dir={tmp_path}", "algo=sft", "trainer.max_steps=2"),
        *("trainer.minibatch_prompts=4", "trainer.prompts_per_batch=4"),
        *("bench.train_tasks=8", "bench.test_tasks=2", "eval.before=false", "hardware.threads=1"),
    ]
    subprocess.run([*command, "dry_run=true"], check=True, capture_output=True)
    (folder,) = tmp_path.glob("*/*/checkpoints")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Read-only file system" in done.stderr and "Traceback" not in done.stderr
    status = json.loads((folder.parent / "status.json").read_text())
    assert status["status"] == "failed" and "Read-only" in status["error"]
    assert not (folder.parent / "metrics.jsonl").exists()  # found out before anything was trained
    assert subprocess.run(command, capture_output=True, timeout=200).returncode == 0


# --- rollouts of another policy -----------------------------------------------------------------------------------


def test_a_sampler_that_differs_is_named_once_until_it_agrees_again() -> None:
    said: list[str] = []
    watch, state = Watch(faults(), said.append), TrainerState()
    for step, kl in enumerate([1e-6, 0.09, 0.2, 0.3, None, 0.2, 0.05, 4.0], 1):
        state.global_step = step
        state.log_history += [{"step": step, **({} if kl is None else {SAMPLER_KL: kl})}]
        watch.on_log(TrainingArguments(output_dir="unused", use_cpu=True), state, TrainerControl())
    assert [text.split(" do not")[0] for text in said] == [f"warning: the rollouts of update {n}" for n in (3, 8)]
    assert "sampler/kl=0.2 nats" in said[0] and "trainer.engine=packed" in said[0]
