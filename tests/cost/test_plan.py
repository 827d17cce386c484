"""Plans of whole runs: what fits, what would, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.config.networks import KNOWN
from agentrl.config.sequences import Lengths
from agentrl.core.errors import UserError
from agentrl.cost.gpus import GPUS
from agentrl.cost.plan import Plan, make_plan, read_lengths
from tests.support.helpers import composed

H100 = GPUS["h100"]
EXPECTED = Lengths(1500, 800, 800, 800, 8)
SHORT = ("rollout.max_prompt_tokens=2000", "rollout.max_completion_tokens=4000", "rollout.max_turn_tokens=4000")


def plan(*keys: str, price: float | None = None, gpu: str = "h100") -> Plan:
    config = composed("algo=grpo", "bench.train_tasks=2048", "bench.test_tasks=100", *keys)
    return make_plan(config, KNOWN[config.model.path], GPUS[gpu], EXPECTED, price)


def test_a_full_4b_does_not_fit_beside_vllm_and_the_plan_says_what_does() -> None:
    found = plan("model=qwen3-4b", "hardware=gpu", "vllm.mode=colocate", *SHORT)
    assert len(found.problems) == 2
    assert "update needs" in found.problems[1] and "a GPU has 79.2 GiB" in found.problems[1]
    assert "model/lora=on" in words(found)
    assert "hardware=multi_gpu hardware.processes=4 hardware.accelerate_config=fsdp2" in words(found)
    assert any("vllm.sleep=true" in proposal for proposal in found.proposals)
    for proposal in found.proposals:
        assert 0 < int(proposal.partition(" GiB")[0]) < 79 or "gpu=" in proposal


@pytest.mark.parametrize(
    "keys",
    [
        ("model/lora=on",),
        ("hardware=multi_gpu", "hardware.accelerate_config=fsdp2"),
        ("vllm.sleep=true", "algo.kl_coef=0", "trainer.tokens_per_batch=4096"),
    ],
)
def test_what_is_proposed_fits(keys: tuple[str, ...]) -> None:
    found = plan("model=qwen3-4b", "hardware=gpu", "vllm.mode=colocate", *SHORT, *keys)
    assert found.problems == [] == found.proposals


def test_no_proposal_holds_more_than_is_needed() -> None:
    found = plan("model=qwen3-4b", "hardware=gpu", "vllm.mode=colocate", *SHORT)
    assert sum("model/lora=on" in proposal for proposal in found.proposals) == 1
    assert not any("processes=8" in proposal for proposal in found.proposals)  # four are enough


def test_hours_and_price_by_hand() -> None:
    keys = ("model=qwen3-1.7b", "hardware=multi_gpu", "vllm.mode=server", "vllm.tensor_parallel=2", *SHORT)
    found = plan(*keys, price=2.5)
    assert (found.trainers, found.servers) == (4, 2)
    costs = found.costs["expected"]
    assert costs.step == costs.batch.sampling + costs.batch.training
    # 2048 tasks make 8 batches of 256; three epochs
    assert costs.seconds == pytest.approx(24 * costs.step + costs.evaluation)
    assert costs.gpu_hours == pytest.approx(6 * costs.seconds / 3600)
    assert costs.price == pytest.approx(2.5 * costs.gpu_hours)
    assert found.costs["at most"].seconds > costs.seconds
    ahead = plan(*keys, "rollout.ahead=1").costs["expected"]
    assert ahead.step == max(ahead.batch.sampling, ahead.batch.training) and ahead.price is None


def test_a_32b_on_64_gpus_with_a_thousand_episodes_at_once() -> None:
    keys = ("model=qwen3-32b", "hardware=slurm", "hardware.processes=64", "hardware.nodes=8", "eval.before=false")
    keys += ("hardware.accelerate_config=fsdp2", "vllm.mode=server", "vllm.tensor_parallel=8", *SHORT)
    # 1,024 episodes
    batch = ("trainer.prompts_per_batch=128", "trainer.minibatch_prompts=64", "trainer.tokens_per_batch=16384")
    found = plan(*keys, *batch)
    assert found.problems == []
    assert found.memory.phases["update"]["weights"] == KNOWN["Qwen/Qwen3-32B"].parameters * 4 / 64
    before = plan(*keys, *batch, "eval.before=true")
    assert "evaluation before training" in before.problems[0] and "eval.before=false" in before.proposals[0]
    alone = plan("model=qwen3-32b", "hardware=gpu", "vllm.mode=server", *SHORT, gpu="a100-40gb")
    assert any("the vLLM server needs" in problem for problem in alone.problems)  # 61 GiB of weights on one GPU


def test_vllm_needs_room_for_weights_and_an_episode() -> None:
    keys = ("model=qwen3-8b", "model/lora=on", "hardware=gpu", "trainer.tokens_per_batch=8192", *SHORT)
    found = plan(*keys, "vllm.mode=colocate", "vllm.memory=0.2")
    (problem,) = found.problems
    # 2 x 8.19e9 bytes, 3 GiB beside them, and 6,000 tokens of 147,456 bytes; a fifth of 79.2 GiB
    assert "needs 19.1 GiB" in problem and "vllm.memory=0.2 gives it 15.8 GiB" in problem


def words(found: Plan) -> list[str]:
    """The changes that a plan proposes, without the memory that each needs."""
    return [proposal.partition(": ")[2] for proposal in found.proposals]


def test_a_share_of_the_gpu_that_is_wrong_for_vllm_is_named() -> None:
    """Too little for vLLM, or too much for the trainer beside it: another share is the whole cure."""
    beside = ("model=qwen3-4b", "model/lora=on", "hardware=gpu", "vllm.mode=colocate", *SHORT)
    for share, better in (("0.05", "0.2"), ("0.8", "0.45")):
        assert f"vllm.memory={better}" in words(plan(*beside, f"vllm.memory={share}")), share
        assert plan(*beside, f"vllm.memory={better}").problems == []
    server = ("model=qwen3-4b", "model/lora=on", "hardware=gpu", "vllm.mode=server", *SHORT)
    assert words(plan(*server, "vllm.memory=0.1"))[0] == "vllm.memory=0.9"


@pytest.mark.parametrize(
    ("mode", "keys", "cures"),
    [
        ("colocate", ("model=qwen3-14b", "hardware.processes=16", *SHORT), {"memory=0.45", "tensor_parallel=2"}),
        (
            "server",
            ("model=qwen3-32b", "hardware.processes=64", "vllm.memory=0.8", *SHORT),
            {"memory=0.9", "tensor_parallel=2"},
        ),
    ],
)
def test_a_vllm_that_does_not_fit_on_a_gpu_gets_more_of_it_or_is_split(
    mode: str, keys: tuple[str, ...], cures: set[str]
) -> None:
    many = ("hardware=multi_gpu", "hardware.accelerate_config=fsdp2", "eval.before=false", f"vllm.mode={mode}")
    keys += (*many, "trainer.tokens_per_batch=8192")
    found = plan(*keys)
    (problem,) = found.problems
    assert "for its weights and one longest episode, and vllm.memory=" in problem
    for cure in cures:
        assert f"vllm.{cure}" in words(found) and plan(*keys, f"vllm.{cure}").problems == [], found.proposals


def test_an_evaluation_costs_sampling_alone() -> None:
    found = plan("algo=eval", "model=qwen3-4b", "hardware=gpu")
    assert found.costs["expected"].seconds == found.costs["expected"].evaluation > 0
    assert found.costs["expected"].batch.update == 0


def test_experts_are_not_planned() -> None:
    config = composed("algo=grpo", "hardware=gpu")
    with pytest.raises(UserError, match="without experts"):
        make_plan(config, replace(KNOWN["Qwen/Qwen3-4B"], mixture=True), H100)


def test_lengths_are_read_from_a_run(tmp_path: Path) -> None:
    lines = [
        {
            "prompt_ids": [1] * 10,
            "completion_ids": [1] * 6,
            "policy_mask": [1, 1, 1, 0, 0, 1],
            "sft": {"tokens": ["a"]},
        },
        {"prompt_ids": [1] * 20, "completion_ids": [1] * 2, "policy_mask": [1, 1]},
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_lengths(tmp_path, 8) == Lengths(prompt=15, completion=4, sampled=3, trace=1, rollouts=8)
    (tmp_path / "rollouts.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_lengths(tmp_path, 8)
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(lines[0]) + '\n{"step": 1}\n')
    with pytest.raises(UserError, match=r"record 2 of rollouts\.jsonl is no episode"):
        read_lengths(tmp_path, 8)
    with pytest.raises(UserError, match=r"like=.*no rollouts\.jsonl"):
        read_lengths(tmp_path / "nothing", 8)


def test_proposals_keep_the_hardware_of_several_gpus() -> None:
    for hardware, words in (("gpu", "hardware=multi_gpu hardware.processes="), ("multi_gpu", ": hardware.processes=")):
        config = composed("algo=grpo", f"hardware={hardware}", "hardware.processes=1", "trainer.engine=padded")
        found = make_plan(config, KNOWN["Qwen/Qwen3-8B"], H100).proposals
        assert any(words in one for one in found), found
