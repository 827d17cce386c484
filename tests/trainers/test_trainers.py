"""Trainers against TRL's own loss, against each other, and against the reductions the papers imply."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from trl import GRPOTrainer

from agentrl.benches import load_bench
from agentrl.core.bench import TwoSided
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import ExpertTrace
from agentrl.models.adapters import lora_config
from agentrl.models.loading import load_chat, load_model, needs_of
from agentrl.objectives.advantages import trajectory_advantage
from agentrl.scoring.sequence import Sequence
from agentrl.traces.files import make_lookup
from agentrl.trainers.arguments import sft_arguments
from agentrl.trainers.row_order import EpochSampler, crop_padding, restore_row_order
from agentrl.trainers.sft import TraceSFTTrainer, expert_dataset, trace_labels
from tests.rollout.test_rollout import expert_script
from tests.support.helpers import (
    composed,
    gradient,
    log_probs,
    make_trainer,
    rolled_batch,
    rolled_with_trl_advantages,
    small,
    trl_loss,
)

LOOSE = ("algo.entropy_coef=0", "algo.kl_coef=0")


def test_grpo_agrees_with_trl(tmp_path: Path):
    trainer = make_trainer(
        small("algo=grpo", *LOOSE, "algo.advantage.kind=trajectory", "algo.advantage.eps=1e-4"), tmp_path, expert_script
    )
    batch = rolled_batch(trainer)
    # TRL's own advantages, one a row, from the same returns.
    returns = torch.tensor([sum(rewards) for rewards in trainer._turn_rewards])
    grouped = returns.view(-1, 4)
    theirs = ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).flatten()
    ours, trl = trainer.compute_loss(trainer.model, batch), trl_loss(trainer, {**batch, "advantages": theirs})
    assert ours.item() == pytest.approx(trl.item(), abs=1e-6)
    assert torch.allclose(gradient(trainer, ours), gradient(trainer, trl), atol=1e-6)
    assert gradient(trainer, trainer.compute_loss(trainer.model, batch)).abs().max() > 1e-3


def test_the_baselines_rewards_reach_the_rollouts(tmp_path: Path):
    rewards = {}
    for name in ("ftrl", "toolrl", "ot", "answer"):
        trainer = make_trainer(small("algo=grpo", *LOOSE, f"reward={name}"), tmp_path, expert_script)
        assert rolled_batch(trainer, prompts=1)["advantages"].abs().max() > 0
        rewards[name] = trainer._turn_rewards
    hops = len(rewards["ftrl"][0]) - 1
    expert, at_once, unknown, repeats = rewards["ftrl"]
    assert (expert, at_once, unknown) == ([1.0] * (hops + 1), [0], [0, 0]) and repeats == [1] + [0] * (len(repeats) - 1)
    # format 1 and exact calls 3; no calls -3; a call of no reference's name -3; ends on a call: no format
    expert, at_once, unknown, repeats = rewards["toolrl"]
    assert (expert, at_once, unknown) == ([0.0] * hops + [4.0], [-2.0], [0, -2]) and -3 <= repeats[-1] < 3
    expert, at_once, unknown, _ = rewards["ot"]
    assert all(reward > 0 for reward in expert) and sum(expert[:-1]) <= 1 and at_once == [0] and unknown == [0, 0]
    assert rewards["answer"][0] == [0.0] * hops + [1.0]


def test_trajectory_advantage_is_what_trl_computes_itself(tmp_path: Path):
    trainer = make_trainer(small("algo=grpo", *LOOSE), tmp_path, expert_script)
    _, advantages = rolled_with_trl_advantages(trainer)
    returns = torch.tensor([sum(rewards) for rewards in trainer._turn_rewards], dtype=torch.float64).view(-1, 4)
    assert torch.allclose(trajectory_advantage(returns, 1e-4).flatten().float(), advantages, atol=1e-5)


@pytest.mark.parametrize("sft_coef", [0.0, 0.1])  # an anchored prompt trains on no trace, so the weight says nothing
def test_pact_with_q_1_is_grpo(tmp_path: Path, sft_coef: float):
    pact = make_trainer(small(*LOOSE, "algo.q=1", f"algo.sft_coef={sft_coef}"), tmp_path, expert_script)
    grpo = make_trainer(small("algo=grpo", *LOOSE, "algo.advantage.kind=hard_credit"), tmp_path, expert_script)
    ours, theirs = rolled_batch(pact), rolled_batch(grpo)
    assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
    assert torch.equal(ours["context_ids"], ours["prompt_ids"])
    assert torch.allclose(ours["advantages"], theirs["advantages"], atol=1e-6)
    loss, reference = pact.compute_loss(pact.model, ours), grpo.compute_loss(grpo.model, theirs)
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)
    assert torch.allclose(gradient(pact, loss), gradient(grpo, reference), atol=1e-6)


def test_conditioned_ratios_are_1_at_the_first_update(tmp_path: Path):
    # Two updates a rollout batch: TRL then records old log-probs when the batch is sampled.
    trainer = make_trainer(small(*LOOSE, "algo.q=0", "trainer.minibatch_prompts=1"), tmp_path, expert_script)
    batch = rolled_batch(trainer)
    now, other = (log_probs(trainer, batch, context) for context in ("context", "prompt"))
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    ratio = torch.exp(now - batch["old_per_token_logps"])[mask]
    assert (ratio - 1).abs().max() < 1e-4
    # The context matters, so a ratio against the plain prompt would not be 1.
    assert (now - other)[mask].abs().max() > 1e-3
    trace_text = trainer.processing_class.decode(batch["context_ids"][0])
    assert "Reference trace:" in trace_text
    assert "Reference trace:" not in trainer.processing_class.decode(batch["prompt_ids"][0])


def test_a_mixed_batch_is_the_mean_of_its_prompts(tmp_path: Path):
    trainer = make_trainer(small(*LOOSE, "algo.q=0.5"), tmp_path, expert_script)
    batch = rolled_batch(trainer, prompts=2)
    for seed in range(100):  # a draw in which one prompt is anchored and the other is not
        trainer.config.seed = seed
        batch = rolled_batch(trainer, prompts=2)
        has_trace = ["Reference trace:" in trainer.processing_class.decode(batch["context_ids"][r]) for r in (0, 4)]
        if has_trace == [True, False]:
            break
    assert has_trace == [True, False]
    assert [trace is not None for trace in batch["trace"]] == [True] + [False] * 7
    whole = trainer.compute_loss(trainer.model, batch)
    halves = [
        {
            k: v[s] if not (isinstance(v, torch.Tensor) and v.dim() == 0) and v is not None else v
            for k, v in batch.items()
        }
        for s in (slice(0, 4), slice(4, 8))
    ]
    parts = [trainer.compute_loss(trainer.model, half) for half in halves]
    assert whole.item() == pytest.approx(sum(p.item() for p in parts) / 2, abs=1e-6)


def test_without_rl_and_at_full_level_pact_is_masked_sft(tmp_path: Path):
    trainer = make_trainer(
        small(*LOOSE, "algo.q=0", "algo.rl_coef=0", "algo.sft_coef=1", "anneal.start=1", "anneal.end=1"),
        tmp_path,
        expert_script,
    )
    batch = rolled_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    per_trace = []
    for trace in (t for t in batch["trace"] if t is not None):
        ids = torch.tensor([trace.prompt_ids + trace.ids])
        labels = torch.tensor([trace_labels(trace, ["reasoning", "tool_call"])])
        # L_SFT weighs reasoning and calls, not the token that ends the turn.
        labels[labels == trainer.processing_class.eos_token_id] = -100
        logits = trainer.model(input_ids=ids).logits
        per_trace.append(cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100))
    reference = torch.stack(per_trace).mean()
    assert len(per_trace) == 2
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    assert torch.allclose(gradient(trainer, loss), gradient(trainer, reference), atol=1e-5)


def test_kl_starts_at_zero_in_either_context(tmp_path: Path):
    for context in ("ratio", "prompt"):
        trainer = make_trainer(
            small(
                "algo.q=0", "algo.sft_coef=0", "algo.entropy_coef=0", "algo.kl_coef=0.1", f"algo.kl_context={context}"
            ),
            tmp_path,
            expert_script,
        )
        batch = rolled_batch(trainer)
        with_kl = trainer.compute_loss(trainer.model, batch)
        assert trainer._metrics["train"]["kl"][-1] == pytest.approx(0, abs=1e-6)
        trainer.config.algo.kl_coef = 0.0
        assert with_kl.item() == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), abs=1e-6)


def test_kl_in_the_prompt_context_adds_exactly_beta_times_kl(tmp_path: Path):
    trainer = make_trainer(
        small("algo.q=0", "algo.sft_coef=0", "algo.entropy_coef=0.01", "algo.kl_coef=0.1", "algo.kl_context=prompt"),
        tmp_path,
        expert_script,
    )
    batch = rolled_batch(trainer)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    loss = trainer.compute_loss(trainer.model, batch)
    delta = batch["ref_per_token_logps"] - log_probs(trainer, batch)
    mask = batch["completion_mask"] * batch["tool_mask"]
    kl = ((torch.exp(delta) - delta - 1) * mask).sum(1) / mask.sum(1)
    trainer.config.algo.kl_context, trainer.config.algo.kl_coef = "ratio", 0.0
    without = trainer.compute_loss(trainer.model, batch)
    assert kl.mean() > 1e-4
    assert loss.item() == pytest.approx(without.item() + 0.1 * kl.mean().item(), abs=1e-5)


def test_constant_rewards_give_no_gradient(tmp_path: Path):
    trainer = make_trainer(small("algo=grpo", *LOOSE), tmp_path, lambda task, sample, turn: "<answer>Nobody</answer>")
    batch = rolled_batch(trainer)
    assert batch["advantages"].abs().max() == 0
    assert gradient(trainer, trainer.compute_loss(trainer.model, batch)).abs().max() == 0


@pytest.mark.parametrize("full", ["one", "all"])
def test_a_prompt_that_fills_the_context_has_an_empty_completion_and_teaches_nothing(tmp_path: Path, full: str):
    trainer = make_trainer(small("algo=grpo", *LOOSE, "rollout.max_turns=1", "rollout.max_turn_tokens=4"), tmp_path)
    sizes = [len(trainer.chat.prompt_ids(task.prompt, task.tools)) for task in trainer.tasks[:2]]
    assert sizes[0] != sizes[1]
    trainer.engine.sampler.context = max(sizes) if full == "one" else min(sizes)
    batch = rolled_batch(trainer)
    empty = [size >= trainer.engine.sampler.context for size in sizes for _ in range(4)]
    assert [not one.completion_ids for one in trainer._trajectories] == empty
    assert [row not in trainer.wanted(batch)["rollouts"] for row in range(8)] == empty
    assert batch["num_items_in_batch"] == (batch["completion_mask"] * batch["tool_mask"]).sum()
    assert trainer._metrics["train"]["completion/truncated"] == [1.0]
    assert math.isfinite(gradient(trainer, trainer.compute_loss(trainer.model, batch)).norm())


def test_log_probs_that_need_no_gradient_are_without_dropout(tmp_path: Path):
    """Dropout is not part of the policy: otherwise the ratio would differ from 1 before any update."""
    config = small("algo=grpo", "model/lora=on", "model.lora.dropout=0.5")
    trainer = make_trainer(config, tmp_path, peft_config=lora_config(config.model))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    trainer.model.train()
    one, other = (
        trainer.score_sequences(trainer.model, [Sequence([5, 6, 7, 8], [1, 2, 3])]).logps[0] for _ in range(2)
    )
    assert torch.equal(one, other) and trainer.model.training


def test_row_order_is_restored_over_chunks():
    rows = torch.tensor([3, 0, 2, 1])
    chunks = [
        {"row": rows[:2], "x": rows[:2] * 10.0, "names": ["d", "a"], "n": torch.tensor(7), "none": None},
        {"row": rows[2:], "x": rows[2:] * 10.0, "names": ["c", "b"], "n": torch.tensor(7), "none": None},
    ]
    first, second = restore_row_order(chunks)
    assert first["row"].tolist() == [0, 1] and second["row"].tolist() == [2, 3]
    assert first["x"].tolist() == [0.0, 10.0] and second["names"] == ["c", "d"]
    assert first["n"] == 7 and first["none"] is None


def test_minibatches_keep_a_prompts_rollouts_together(tmp_path: Path):
    trainer = make_trainer(small(*LOOSE, "trainer.minibatch_prompts=1"), tmp_path, expert_script)
    trainer.model.train()
    rows = [{"task": i, "prompt": trainer.tasks[i].prompt} for i in range(2) for _ in range(4)]
    first = trainer._prepare_inputs(rows)
    assert first["row"].tolist() == [0, 1, 2, 3]
    assert trainer._buffered_inputs[1]["row"].tolist() == [4, 5, 6, 7]


def test_without_rl_a_mini_batch_of_anchored_prompts_has_a_zero_gradient(tmp_path: Path):
    trainer = make_trainer(small(*LOOSE, "algo.q=0.9", "algo.rl_coef=0"), tmp_path, expert_script)
    batch = rolled_batch(trainer)
    batch["trace"] = [None] * 8
    trainer.compute_loss(trainer.model, batch).backward()


def test_cropping_changes_no_loss(tmp_path: Path):
    trainer = make_trainer(small(*LOOSE, "algo.q=0", "trainer.minibatch_prompts=1"), tmp_path, expert_script)
    batch = rolled_batch(trainer)
    rows = {k: v[1:3] if isinstance(v, list) or (v is not None and v.dim()) else v for k, v in batch.items()}
    shorter = crop_padding(rows)
    assert shorter["completion_ids"].shape[1] < rows["completion_ids"].shape[1]
    loss, other = (trainer.compute_loss(trainer.model, inputs) for inputs in (rows, shorter))
    assert loss.item() == pytest.approx(other.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0, 0.5, 1, 1, 1, 1]), ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25])],
)
def test_every_schedule_warms_up(schedule: str, expected: list[float], tmp_path: Path):
    overrides = (f"trainer.lr_schedule={schedule}", "trainer.warmup_steps=2", "trainer.learning_rate=1e-3")
    trainer = make_trainer(small("algo=grpo", *LOOSE, *overrides), tmp_path, expert_script)
    trainer.create_optimizer_and_scheduler(6)
    rates = []
    for _ in range(6):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == pytest.approx([1e-3 * share for share in expected])


def test_every_epoch_has_an_order_of_its_own_that_a_resumed_run_sees_again():
    def order(epoch):
        sampler = EpochSampler(list(range(6)), mini_repeat_count=2, batch_size=2, repeat_count=1, shuffle=True, seed=3)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1) == order(1)
    assert order(0) != order(1)


@pytest.mark.parametrize(("completion", "context"), [(500, 1500), (10**6, 16384)])
def test_vllm_reserves_for_the_longest_episode(completion: int, context: int, tmp_path: Path, monkeypatch):
    seen = {}
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda self, model, args, **_: seen.update(model=model, args=args))
    overrides = (
        *("vllm.mode=colocate", "vllm.memory=0.4", "vllm.tensor_parallel=2", "vllm.sleep=true"),
        "rollout.max_prompt_tokens=1000",
        f"rollout.max_completion_tokens={completion}",
    )
    with pytest.raises(AttributeError):  # of what TRL would have set
        make_trainer(small("algo=grpo", *overrides), tmp_path)
    assert seen["model"].config.max_position_embeddings == 16384
    args = seen["args"]
    assert (args.use_vllm, args.vllm_mode, args.vllm_max_model_length) == (True, "colocate", context)
    assert (args.vllm_gpu_memory_utilization, args.vllm_tensor_parallel_size) == (0.4, 2)
    assert args.vllm_enable_sleep_mode and args.vllm_importance_sampling_mode == "token_truncate"


def test_sft_imitates_the_replies_of_a_file_on_a_two_sided_bench() -> None:
    config = composed("algo=sft", "bench=minihif", "model=tiny_hif")
    bench = load_bench(config.bench)
    tasks = bench.tasks("train")[:3]
    chat = load_chat(config.model, needs_of(tasks))
    given = {tasks[1].id: ExpertTrace(tasks[1].id, (), bench.expert_trace(tasks[2]).answer, "path")}
    (row,) = expert_dataset(chat, bench, tasks, config.algo.components, make_lookup(given))
    assert row["input_ids"][: row["labels"].count(-100)] == chat.prompt_ids(tasks[1].prompt, [])
    target = chat.tokenizer.decode([token for token in row["labels"] if token != -100])
    assert target.startswith(given[tasks[1].id].answer) and target != bench.expert_trace(tasks[1]).answer
    assert len(expert_dataset(chat, bench, tasks, config.algo.components)) == 3  # the bench's own
    with pytest.raises(UserError, match="none of its 3 training tasks has an expert reply to imitate; give replies"):
        expert_dataset(chat, bench, tasks, config.algo.components, make_lookup({}))


def test_only_suites_of_two_sides_are_imitated_as_replies() -> None:
    minihop, minihif = (load_bench(composed(f"bench={name}").bench) for name in ("minihop", "minihif"))
    assert isinstance(minihif, TwoSided) and not isinstance(minihop, TwoSided)


def test_every_process_shuffles_a_dataset_alike(tmp_path: Path):
    config = small("algo=sft", "trainer.minibatch_prompts=1")
    bench = load_bench(config.bench)
    tasks = bench.tasks("train")
    chat = load_chat(config.model, needs_of(tasks))
    orders = []
    for process in range(2):
        trainer = TraceSFTTrainer(
            model=load_model(config.model),
            chat=chat,
            args=sft_arguments(config, tmp_path),
            train_dataset=expert_dataset(chat, bench, tasks, config.algo.components),
            settings=config.trainer,
        )
        torch.manual_seed(config.seed + process)  # as processes sample
        orders.append([batch["input_ids"][0].tolist() for batch in trainer.get_train_dataloader()])
    assert len(orders[0]) == len(tasks) > 1 and orders[0] == orders[1]
