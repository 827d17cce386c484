"""A whole rollout batch through a server that answers as vLLM does, with a network of its own behind it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.generation import vllm_generation

from agentrl.core.engine import Decoding, Episode
from agentrl.core.errors import UserError
from agentrl.models.adapters import lora_config
from agentrl.trainers import mismatch
from tests.support.helpers import make_trainer, small
from tests.support.vllm_network import CHOSEN, network
from tests.support.vllm_stand_in import StandIn


def trainer_at(stand_in: StandIn, tmp_path: Path, *overrides: str) -> Any:
    trainer = make_trainer(small(*CHOSEN, f"vllm.url={stand_in.url}", *overrides), tmp_path)
    trainer.model.train()
    return trainer


@pytest.mark.parametrize("sampling", [(), ("rollout.temperature=0.7", "rollout.top_p=0.9")])
def test_rollouts_come_from_the_weights_of_the_step(sampling: tuple[str, ...], tmp_path: Path) -> None:
    with network() as (stand_in, model, taken):
        trainer = trainer_at(stand_in, tmp_path, *sampling)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        batch = trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)
        theirs = dict(model.named_parameters())
        assert all(torch.equal(theirs[name], value) for name, value in trainer.model.named_parameters())
        own = (batch["completion_mask"] * batch["tool_mask"]).bool()
        torch.testing.assert_close(
            batch["importance_sampling_ratio"][own], torch.ones(int(own.sum())), atol=1e-4, rtol=0
        )
        logged = trainer._metrics["train"]
        assert 0 <= logged["sampler/kl"][0] < 1e-8 and logged["sampler/ratio_max"] == [pytest.approx(1, abs=1e-4)]
        # Once a step: neither a second batch nor an evaluation of the same weights sends them again.
        trainer.engine.rollout([Episode(trainer.tasks[0], trainer.bench.environment(trainer.tasks[0]))], Decoding(0.0))
        assert len(taken) == 1 and "lm_head.weight" not in taken[0]
        assert not (tmp_path / "vllm").exists() or not list((tmp_path / "vllm").iterdir())
        paths = [path for path, _ in stand_in.asked]
        assert paths.index("/reset_prefix_cache") == paths.index("/collective_rpc") + 1


def test_the_same_step_asks_for_the_same_seeds_and_another_step_for_others(tmp_path: Path) -> None:
    asked = []
    for step in (0, 0, 1):
        with network() as (stand_in, _, _):
            trainer = trainer_at(stand_in, tmp_path)
            trainer.state.global_step = step
            trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)
            asked.append(sorted(body["seed"] for path, body in stand_in.asked if path == "/v1/completions"))
    assert asked[0] == asked[1] and len(set(asked[0])) == len(asked[0]) and not set(asked[0]) & set(asked[2])


def test_weights_that_do_not_arrive_stop_the_run(tmp_path: Path) -> None:
    with network(stale=True) as (stand_in, _, _):
        trainer = trainer_at(stand_in, tmp_path)
        row = [{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2
        trainer._generate_and_score_completions(row)  # nothing has moved yet
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        trainer.state.global_step = 1
        with pytest.raises(UserError, match=r"after new weights the log-probs of vLLM and of the trainer differ by"):
            trainer._generate_and_score_completions(row)


def test_an_output_layer_of_its_own_is_sent_to_a_server_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.trainers.samplers.serves_untied", lambda settings: True)
    with network() as (stand_in, _, taken):
        trainer = trainer_at(stand_in, tmp_path)
        trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)
    assert "lm_head.weight" in taken[0] and len(taken[0]) == 1 + len(dict(trainer.model.named_parameters()))


def test_a_server_that_refuses_the_weights_is_quoted(tmp_path: Path) -> None:
    def take(folder: str) -> None:
        raise RuntimeError("No such file or directory")

    with StandIn(take=take).serving() as stand_in:
        trainer = trainer_at(stand_in, tmp_path)
        with pytest.raises(UserError, match=r"did not take the new weights \(HTTP 500 .*No such file"):
            trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)


def test_a_server_that_is_gone_is_named_as_such(tmp_path: Path) -> None:
    with StandIn().serving() as stand_in:
        trainer = trainer_at(stand_in, tmp_path)
        stand_in.die()
        with pytest.raises(UserError, match=r"the vLLM server failed \(.*refused\); its log says why"):
            trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)


@torch.no_grad()
def randomise_adapters(model: Any) -> None:
    """Give the adapters an effect; they begin with none."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sending_merged_adapters_leaves_the_base_as_it_was(tmp_path: Path, dtype: str) -> None:
    """Adding an adapter in place and subtracting it again rounds twice, and would change the base with every batch."""
    with network(f"model.dtype={dtype}") as (stand_in, served, taken):
        config = small(*CHOSEN, f"vllm.url={stand_in.url}", "model/lora=on", f"model.dtype={dtype}")
        trainer = make_trainer(config, tmp_path, peft_config=lora_config(config.model))
        trainer.model.train()
        randomise_adapters(trainer.model)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)
    assert [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])] == []
    assert taken[0] == {name for name, _ in served.named_parameters()}
    layer = trainer.model.base_model.model.model.layers[1].self_attn.q_proj
    base, added = layer.base_layer.weight.float(), layer.get_delta_weight("default").float()
    assert added.abs().max() > 0.01
    got = served.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(got.float(), (base + added).to(got.dtype).float(), atol=0, rtol=0)


def merged_copy(model: Any) -> Any:
    """The whole model that a policy is, with its adapters merged by PEFT; the policy itself stays."""
    copied = copy.deepcopy(model)
    return copied.merge_and_unload() if hasattr(copied, "merge_and_unload") else copied


@pytest.mark.parametrize("adapters", ["off", "on"])
def test_nccl_is_left_to_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: str) -> None:
    """NCCL itself needs GPUs; what TRL's client is told does not."""
    told: list[Any] = []

    class Client:
        def __init__(self, **how: Any) -> None:
            told.append(how["base_url"])

        def init_communicator(self, device: Any) -> None:
            told.append(str(device))

        def update_named_params(self, metadata: Any, tensors: Any) -> None:
            told.append([(name, kind, tuple(shape)) for name, kind, shape in metadata])
            told.append(dict(list(tensors)))  # vLLM, too, takes many tensors before it packs and sends them

        def reset_prefix_cache(self) -> None:
            told.append("forgotten")

    monkeypatch.setattr(vllm_generation, "VLLMClient", Client, raising=False)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr("agentrl.trainers.samplers.way_of_weights", lambda settings, config: "nccl")
    with network() as (stand_in, model, taken):
        config = small(*CHOSEN, f"vllm.url={stand_in.url}", f"model/lora={adapters}")
        trainer = make_trainer(config, tmp_path, peft_config=lora_config(config.model))
        trainer.model.train()
        randomise_adapters(trainer.model)
        with torch.no_grad():
            for name, value in merged_copy(trainer.model).named_parameters():
                model.get_parameter(name).copy_(value)  # the server has what it would be sent
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)
    url, device, metadata, tensors, last = told
    assert (url, device, last) == (stand_in.url, "cpu", "forgotten") and not taken
    assert metadata == [(name, "float32", tuple(value.shape)) for name, value in model.named_parameters()]
    for name, value in model.named_parameters():
        torch.testing.assert_close(tensors[name], value, atol=0, rtol=0, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_a_sleeping_server_is_woken_for_a_batch_and_sleeps_after_it(tmp_path: Path) -> None:
    with network() as (stand_in, _, _):
        trainer = trainer_at(stand_in, tmp_path, "vllm.sleep=true")
        for _ in range(2):
            trainer._generate_and_score_completions([{"task": 0, "prompt": trainer.tasks[0].prompt}] * 2)
    told = [path for path, _ in stand_in.asked if path.startswith(("/sleep", "/wake_up", "/collective_rpc"))]
    assert told == ["/wake_up", "/collective_rpc", "/sleep?level=1", "/wake_up", "/sleep?level=1"]


def test_the_mass_that_top_p_keeps_is_the_same_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(small("algo=grpo", "rollout.top_p=0.8", "rollout.temperature=0.7"), tmp_path)
    ids = torch.randint(3, 900, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 17:] = 0, 0  # padding before a prompt and behind a completion
    whole = mismatch.log_masses(trainer, ids, mask, 9)
    assert isinstance(whole, torch.Tensor) and whole.shape == (2, 9) and whole.max() <= 0 and whole.min() < -0.01
    monkeypatch.setattr(mismatch, "PLACES", 4)
    pieces = mismatch.log_masses(trainer, ids, mask, 9)
    torch.testing.assert_close(pieces[mask[:, -9:] == 1], whole[mask[:, -9:] == 1])  # type: ignore[index]
    alone = mismatch.log_masses(trainer, ids[:1, 4:], mask[:1, 4:], 9)
    torch.testing.assert_close(alone, whole[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("adapters", "ahead"), [("off", 0), ("on", 0), ("off", 1)])
def test_two_processes_share_a_server_and_one_sends_the_weights(adapters: str, ahead: int, tmp_path: Path) -> None:
    chosen = (*CHOSEN[:5], "hardware.processes=2", "hardware.threads=1", "trainer.max_steps=2", "eval.limit=2")
    batch = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "rollout.max_turn_tokens=8")
    with network(f"model/lora={adapters}") as (stand_in, _, taken):
        command = [sys.executable, "-m", "agentrl", *chosen, *batch, f"model/lora={adapters}"]
        command += [f"vllm.url={stand_in.url}", f"runs_dir={tmp_path}", "eval.before=false", f"rollout.ahead={ahead}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(taken) == 3 - ahead  # at the start, after either update; ahead, nobody samples between the two
    (file,) = tmp_path.glob("*/*/metrics.jsonl")
    metrics = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(metrics) == 2
    assert [row.get("sampler/behind") for row in metrics] == ([0, 1] if ahead else [None, None])
    for row in metrics[: 2 - ahead]:
        assert 0 <= row["sampler/kl"] < 1e-6 and row["sampler/ratio_max"] < 1.001
    seeds = [body["seed"] for path, body in stand_in.asked if path == "/v1/completions"]
    assert len(set(seeds)) == len(seeds)  # no process asks for what another asks for
