"""Weights over NCCL: a server that dies, is restarted or refuses. TRL's part is a stand-in: there is no GPU here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from agentrl.core.stop import CommonError
from agentrl.endpoint.vllm import VllmServer
from agentrl.rollout import vllm_nccl
from agentrl.rollout.vllm_nccl import NcclWeights, ends_without
from tests.support.vllm_stand_in import StandIn


class Backend:
    """What `VLLMGeneration` gets and does."""

    def __init__(self, *_: Any, **keys: Any) -> None:
        self.keys, self.model, self.work = keys, SimpleNamespace(), lambda: None
        self._dist = SimpleNamespace(is_fsdp=False, is_zero3=False)

    def sync_weights(self) -> None:
        self.work()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    made = StandIn()
    made.settings["instance_id"] = "first"
    with made.serving():
        yield made


@pytest.fixture
def weights(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> NcclWeights:
    monkeypatch.setattr(vllm_nccl, "VLLMGeneration", Backend)
    monkeypatch.setattr(vllm_nccl, "LOOK_S", 0.02)
    server = VllmServer(stand_in.url)
    return NcclWeights(server, "served", server.settings(), None, Accelerator(cpu=True), None)


def test_two_runs_on_a_machine_have_ports_of_their_own(weights: NcclWeights, stand_in: StandIn) -> None:
    server = VllmServer(stand_in.url)
    other = NcclWeights(server, "served", server.settings(), None, Accelerator(cpu=True), None)
    ports = {one._backend.keys["group_port"] for one in (weights, other)}
    assert len(ports) == 2 and 51216 not in ports
    assert weights.sync_weights() == "served"


def test_a_restarted_server_is_not_broadcast_to(weights: NcclWeights, stand_in: StandIn) -> None:
    sent: list[int] = []
    weights._backend.work = lambda: sent.append(1)
    stand_in.settings["instance_id"] = "second"
    with pytest.raises(CommonError, match=r"was started again.*the run goes on from its last checkpoint"):
        weights.sync_weights()
    stand_in.die()
    with pytest.raises(CommonError, match="the vLLM server failed"):
        weights.sync_weights()
    assert not sent


def test_a_refusal_is_one_line_for_all_processes(weights: NcclWeights) -> None:
    def refuse() -> None:
        raise Exception("Request failed: 500, no module named model")

    weights._backend.work = refuse
    with pytest.raises(CommonError, match=r"vllm\.url=.*the vLLM server failed \(Request failed: 500"):
        weights.sync_weights()


def test_a_server_that_dies_in_a_broadcast_ends_the_process(
    weights: NcclWeights, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    left, over = list[int](), threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        over.set()

    with ends_without(weights._server, leave):
        assert not over.wait(0.2)  # it lives
        stand_in.die()
        assert over.wait(10)
    assert left == [1] and "the vLLM server failed (while it took new weights" in capsys.readouterr().err
