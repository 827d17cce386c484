"""Methods are compared on the same tasks, keys select MatchTIR's variants, and PACT logs what it trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from agentrl.benches import load_bench
from agentrl.config.compose import compose as compose_command
from agentrl.core.errors import UserError
from agentrl.objectives.pact import sft_loss
from agentrl.rewards.turns import turn_rewards
from agentrl.trainers.build import choose_tasks, rl_trainer, tell_reward
from tests.rewards.test_matching import TRACE, config, episode
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import CONF, composed, gradient, make_trainer, rolled_batch, small
from tests.support.methods import ROLLOUTS
from tests.trainers.test_kl import log_probs, move

LOOSE = ("algo.entropy_coef=0", "algo.kl_coef=0")


def test_both_norms_of_the_sft_term_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0, -4.0, -9.0]], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, 0.4, 0.4, 0.0]])
    # (1 + .8 + 1.6) / 1.8 and / 3
    assert sft_loss(logps, weights)[0].item() == pytest.approx(3.4 / 1.8)
    loss, count = sft_loss(logps, weights, "tokens")
    assert (loss.item(), count.item()) == (pytest.approx(3.4 / 3), 3)
    (slope,) = torch.autograd.grad(loss.sum(), logps)
    assert slope[0].tolist() == pytest.approx([-1 / 3, -0.4 / 3, -0.4 / 3, 0])
    for norm in ("weights", "tokens"):
        assert torch.autograd.gradcheck(lambda x, norm=norm: sft_loss(x, weights, norm)[0], (logps,))
        assert sft_loss(logps, torch.zeros(1, 4), norm)[0].item() == 0
    with pytest.raises(ValueError, match="unknown norm 'sum'"):
        sft_loss(logps, weights, "sum")


def test_a_falling_weight_fades_the_sft_term_only_if_divided_by_tokens() -> None:
    logps, calls = torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    # with lambda_a = 1 both are equal
    assert torch.equal(sft_loss(logps, calls)[0], sft_loss(logps, calls, "tokens")[0])
    for scale in (0.8, 0.2):
        assert sft_loss(logps, scale * calls)[0].item() == pytest.approx(3.0)  # eq. 10: dividing by Z removes the scale
        assert sft_loss(logps, scale * calls, "tokens")[0].item() == pytest.approx(3.0 * scale)


@pytest.mark.parametrize("norm", ["weights", "tokens"])
def test_pacts_sft_term_is_divided_as_its_key_says(norm: str, tmp_path: Path) -> None:
    keys = ("algo.q=0", "algo.rl_coef=0", "algo.sft_coef=1", "algo.schedule.reasoning=none", f"algo.sft_norm={norm}")
    losses = {}
    for start in (1.0, 0.5):
        trainer = make_trainer(small(*LOOSE, *keys, f"anneal.start={start}", "anneal.end=0"), tmp_path, expert_script)
        batch = rolled_batch(trainer, prompts=1)
        loss = trainer.compute_loss(trainer.model, batch)
        losses[start] = loss.item(), gradient(trainer, loss)
    share = 1.0 if norm == "weights" else 0.5
    assert losses[0.5][0] == pytest.approx(share * losses[1.0][0], rel=1e-5)
    assert torch.allclose(losses[0.5][1], share * losses[1.0][1], atol=1e-6)


def test_answer_tag_gives_0_to_an_answer_without_a_tag() -> None:
    strict = config()
    strict.answer_tag = True
    for text, loose, tagged in (
        ("Paris", 1.0, 0.0),
        ("<answer>Paris</answer>", 1.0, 1.0),
        ("<answer>Paris", 2 / 3, 0.0),
    ):
        assert turn_rewards(episode(text), TRACE.calls, "Paris", config()) == pytest.approx([loose])
        assert turn_rewards(episode(text), TRACE.calls, "Paris", strict) == [tagged]
    thought = episode("<think><answer>Paris</answer></think>Paris")
    assert turn_rewards(thought, TRACE.calls, "Paris", strict) == [0.0]


def test_the_only_rollout_that_reached_a_turn_has_no_group_there(tmp_path: Path) -> None:
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    found = {}
    for raw in ("false", "true"):
        keys = ("algo=grpo", "algo.advantage.kind=hard_credit", f"algo.advantage.lone_raw={raw}")
        trainer = make_trainer(small(*keys, *LOOSE), tmp_path, expert_script)
        found[raw] = trainer.turn_advantages(rewards, mask)
    # A^g = (2 - 1.25) / .5 = 1.5; alone on its turn, its return 1 is kept or nothing
    assert found["false"][0, 1].item() == pytest.approx(1.5, abs=1e-4)
    assert found["true"][0, 1].item() == pytest.approx(2.5, abs=1e-4)
    assert torch.equal(found["false"][:, 0], found["true"][:, 0])


@pytest.mark.parametrize("algo", ["grpo", "pact"])
def test_the_control_changes_signs_of_whole_rollouts_and_nothing_else(algo: str, tmp_path: Path) -> None:
    rewards, mask = torch.rand(8, 3, dtype=torch.float64), torch.ones(8, 3, dtype=torch.bool)
    found = []
    for signs in ("earned", "random"):
        trainer = make_trainer(small(f"algo={algo}", f"algo.advantage.signs={signs}", *LOOSE), tmp_path, expert_script)
        trainer._batch_rows = [0] * 4 + [1] * 4
        found.append(trainer.turn_advantages(rewards, mask))
    ratio = found[1] / found[0]
    assert torch.equal(ratio, ratio[:, :1].expand_as(ratio))
    assert set(ratio.unique().tolist()) == {-1.0, 1.0}


def test_the_arms_of_table_2_differ_in_their_terms_alone() -> None:
    arms = {}
    for name in ("control", "lx", "lh", "lx_sft", "lh_sft", "anchored"):
        config = composed(f"experiment=pact_{name}")
        algo = config.algo
        arms[name] = (algo.q, algo.sft_coef, algo.condition_on_trace, algo.advantage.signs)
        neutral = {"q": 0.4, "sft_coef": 0.1, "condition_on_trace": True}
        algo = algo.model_copy(update={**neutral, "advantage": composed().algo.advantage})
        assert config.model_copy(update={"algo": algo}) == composed()
    assert arms == {
        "control": (1, 0, True, "random"),
        "lx": (1, 0, True, "earned"),
        "lh": (0, 0, True, "earned"),
        "lx_sft": (0, 0.1, False, "earned"),
        "lh_sft": (0, 0.1, True, "earned"),
        "anchored": (0.4, 0.1, True, "earned"),
    }


def test_matchtirs_experiments_do_what_its_code_does() -> None:
    for name in ("matchtir", "matchtir_ot"):
        chosen = composed(f"experiment={name}")
        assert chosen.algo.advantage.lone_raw and chosen.reward.answer_tag and chosen.algo.advantage.scale == 0.5
    assert not composed("algo=grpo").algo.advantage.lone_raw and not composed().reward.answer_tag


# -- which tasks -------------------------------------------------------------------------------------------------------


def tasks_of(algo: str, tasks: str, without: int = 3) -> tuple[int, int]:
    """Return the tasks that an algorithm trains on, if some tasks have no trace."""
    chosen = small(f"algo={algo}", f"trainer.tasks={tasks}")
    bench = load_bench(chosen.bench)
    everything = bench.tasks("train")
    own, lacking = bench.expert_trace, {task.id for task in everything[:without]}
    trainer_class = rl_trainer(chosen.algo)
    assert trainer_class is not None
    given = lambda task: None if task.id in lacking else own(task)  # noqa: E731
    return len(choose_tasks(everything, bench, trainer_class, chosen.trainer, given)), len(everything)


@pytest.mark.parametrize("algo", ROLLOUTS)
def test_every_method_trains_on_the_same_tasks(algo: str) -> None:
    assert tasks_of(algo, "all") == (12, 12)
    assert tasks_of(algo, "with_trace") == (9, 12)
    with pytest.raises(UserError, match="no training task has an expert trace"):
        tasks_of(algo, "with_trace", without=12)


def test_pact_takes_the_plain_surrogate_for_a_task_without_a_trace(tmp_path: Path) -> None:
    trainer = make_trainer(small(*LOOSE, "algo.q=0"), tmp_path, expert_script)
    own, lacking = trainer.expert_trace, trainer.tasks[1].id
    trainer.expert_trace = lambda task: None if task.id == lacking else own(task)
    batch = rolled_batch(trainer)
    assert batch["conditioned"].tolist() == [True] * 4 + [False] * 4
    notes = trainer._rollout_notes()
    assert [note["surrogate"] for note in notes] == ["L^h"] * 4 + ["L^x"] * 4
    assert [note["trace"] for note in notes] == ["whole"] * 4 + ["none"] * 4 and "sft" not in notes[4]
    assert trainer._metrics["train"]["trace/none"] == [0.5]
    # its rollouts are rewarded as before, because references need no trace
    assert sum(trainer._turn_rewards[4]) >= 2


def test_a_trace_that_does_not_fit_is_counted(tmp_path: Path) -> None:
    said: list[str] = []

    class Console:
        def __getattr__(self, name: str) -> Any:
            return lambda *text, **_: said.append(text[0]) if name == "say" else None

    fits = make_trainer(small(*LOOSE, "algo.q=0"), tmp_path, expert_script)
    lengths = [
        len(fits._trace(task).context) - len(fits.chat.prompt_ids(task.prompt, task.tools)) for task in fits.tasks
    ]
    assert all(fits._trace(task).shown == "whole" for task in fits.tasks)
    keys = (*LOOSE, "algo.q=0", f"algo.trace.max_tokens={max(lengths) - 1}")
    shorter = make_trainer(small(*keys), tmp_path, expert_script, console=Console())
    longest = shorter.tasks[lengths.index(max(lengths))]
    several = len(fits.bench.expert_trace(longest).turns) > 1
    assert shorter._trace(longest).shown == ("cut" if several else "none")
    nothing = make_trainer(
        small(*LOOSE, "algo.q=0", "algo.trace.max_tokens=1"), tmp_path, expert_script, console=Console()
    )
    batch = rolled_batch(nothing)
    assert not batch["conditioned"].any() and torch.equal(batch["context_ids"], batch["prompt_ids"])
    assert [note["surrogate"] for note in nothing._rollout_notes()] == ["L^x"] * 8
    assert nothing._metrics["train"]["trace/none"] == [1.0] and nothing._metrics["train"]["trace/cut"] == [0.0]
    assert len([text for text in said if "algo.trace.max_tokens=1" in text]) == 1


def test_a_bench_without_references_is_named_before_it_trains() -> None:
    said: list[str] = []

    class Console:
        say = staticmethod(said.append)

    for reward in ("matching", "ot", "toolrl", "answer"):
        chosen = small("algo=grpo", f"reward={reward}")
        bench = load_bench(chosen.bench)
        tell_reward(chosen, bench, bench.tasks("train"), Console())  # type: ignore[arg-type]
        assert not said
        bench.reference_calls = lambda task: []  # type: ignore[attr-defined]
        tell_reward(chosen, bench, bench.tasks("train"), Console())  # type: ignore[arg-type]
        assert bool(said) == (reward != "answer")
        said.clear()


# -- the log -----------------------------------------------------------------------------------------------------------


def test_both_contexts_are_logged_separately(tmp_path: Path) -> None:
    keys = ("algo.q=0", "algo.sft_coef=0", "algo.entropy_coef=0", "algo.kl_coef=0.1")
    trainer = make_trainer(small(*keys, "trainer.minibatch_prompts=1"), tmp_path, expert_script)
    lacking = trainer.tasks[1].id
    own = trainer.expert_trace
    trainer.expert_trace = lambda task: None if task.id == lacking else own(task)
    batch = rolled_batch(trainer)
    old = log_probs(trainer, batch, "context").detach()
    move(trainer, 0.005)
    trainer.compute_loss(trainer.model, batch)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    with torch.no_grad():
        now = log_probs(trainer, batch, "context")
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    delta, ratio, advantages = old - now, torch.exp(now - old), batch["advantages"]
    clipped = ((ratio < 0.8) & (advantages < 0)) | ((ratio > 1.2) & (advantages > 0))
    for context, rows in (("trace", slice(0, 4)), ("prompt", slice(4, 8))):
        kept = mask[rows]
        kl = (torch.exp(delta) - delta - 1)[rows][kept].mean().item()
        assert logged[f"kl/{context}"] == pytest.approx(kl, rel=1e-3)
        assert logged[f"clip_ratio/{context}"] == pytest.approx(clipped[rows][kept].float().mean().item(), abs=0.02)
        assert logged[f"entropy/{context}"] > 0
    count = [int(mask[rows].sum()) for rows in (slice(0, 4), slice(4, 8))]
    for name in ("kl", "entropy"):  # their sum is what TRL logs
        parts = count[0] * logged[f"{name}/trace"] + count[1] * logged[f"{name}/prompt"]
        assert logged[name] == pytest.approx(parts / sum(count), rel=1e-3)
    batch["conditioned"][:] = True
    before = len(trainer._metrics["train"]["kl/prompt"])
    trainer.compute_loss(trainer.model, batch)
    assert len(trainer._metrics["train"]["kl/prompt"]) == before  # without a row there is no value, not even 0


def test_kl_under_the_prompt_is_logged_as_such(tmp_path: Path) -> None:
    keys = ("algo.q=0", "algo.sft_coef=0", "algo.kl_coef=0.1", "algo.kl_context=prompt")
    trainer = make_trainer(small(*keys), tmp_path, expert_script)
    trainer.compute_loss(trainer.model, rolled_batch(trainer))
    logged = trainer._metrics["train"]
    assert logged["kl/prompt"] == logged["kl"] and "kl/trace" not in logged
    assert "entropy/trace" in logged and "entropy/prompt" not in logged


# -- the shipped sweeps ------------------------------------------------------------------------------------------------


def jobs(name: str) -> list[list[str]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = compose("config", overrides=[f"sweep={name}"], return_hydra_config=True).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (found,) = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for job in found]


def test_the_schedule_sweep_covers_tables_4_and_6() -> None:
    chosen = [compose_command(list(job)).algo for job in jobs("pact_schedule")]  # Hydra expands the braces
    assert {algo.q for algo in chosen} == {0}
    assert sorted((algo.schedule.reasoning, algo.schedule.call) for algo in chosen) == sorted(
        [
            *[("fixed", "scale"), ("segment", "fixed"), ("token", "scale"), ("segment", "token")],
            *[("segment", "scale"), ("segment", "none"), ("none", "scale"), ("full_token", "scale")],
        ]
    )


@pytest.mark.slow
def test_the_methods_sweep_compares_on_the_same_tasks() -> None:
    chosen = [composed(*job) for job in jobs("methods")]
    assert {one.algo.name for one in chosen} == {"sft", "grpo", "pact"} and len(chosen) == 15
    assert {one.trainer.tasks for one in chosen} == {"with_trace"}
    assert len({json.dumps([vars(one.bench), one.trainer.max_steps], default=str) for one in chosen}) == 1
