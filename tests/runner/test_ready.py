"""What a run would miss later is refused within seconds, in one line, before anything is made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.errors import UserError
from agentrl.core.install import install_line, requirements
from agentrl.endpoint import vllm
from agentrl.runner import ready
from agentrl.runner.start import start
from tests.support.helpers import composed
from tests.support.vllm_stand_in import StandIn

SERVER = ("vllm.mode=server",)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn().serving() as stand_in:
        yield stand_in


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        ready.check_ready(composed(*overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_vllm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    text = refusal("hardware=gpu", "vllm.mode=colocate")
    assert text.startswith("vllm.mode=colocate: the package vllm is not installed; pip install 'vllm")
    ready.check_ready(composed("hardware=gpu", "vllm.mode=colocate", "algo=sft"))  # samples with transformers
    with pytest.raises(UserError, match="vllm is not installed"):
        start(composed("hardware=gpu", "vllm.mode=colocate", f"runs_dir={tmp_path}"))
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_server_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(composed(*SERVER, "model=qwen3-4b", f"runs_dir={tmp_path}", "dry_run=true")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Start the server first: VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B --dtype float32 --max" in said


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "http://no-such-host.invalid:8000", "http://127.0.0.1:notaport"]
)
def test_a_missing_server_is_refused(address: str) -> None:
    began = time.perf_counter()
    text = refusal(*SERVER, f"vllm.url='{address}'")
    assert time.perf_counter() - began < 9
    assert text.startswith(f"vllm.url={address}: no vLLM server answers there (")
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in text and "vllm.mode=off" in text


def test_a_server_that_never_answers_is_refused(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "QUICK_S", 0.5)
    monkeypatch.setattr(server, "answer", lambda path, body: time.sleep(2))
    text = refusal(*SERVER, f"vllm.url={server.url}")
    assert "no vLLM server answers there (no answer within 0.5 s); start it with" in text


@pytest.mark.parametrize("silent", ["/server_info", "/v1/models"])
def test_a_server_that_lives_but_says_nothing_of_itself_is_refused(
    silent: str, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sends a byte now and then would outlast every timeout of the client."""
    monkeypatch.setattr(vllm, "SETTINGS_S", 0.5)
    monkeypatch.setattr(vllm, "QUICK_S", 0.5)
    answer, done = server.answer, threading.Event()
    monkeypatch.setattr(
        server, "answer", lambda path, body: answer(path, body) if silent not in path else done.wait(20)
    )
    began = time.perf_counter()
    text = refusal(*SERVER, f"vllm.url={server.url}")
    done.set()
    assert time.perf_counter() - began < 10
    assert "that server does not take part in training (no answer within 0.5 s); start it with" in text


@pytest.mark.parametrize("settings", [None, "<html>", {}])
def test_a_server_that_takes_no_part_in_training_is_refused(server: StandIn, settings: Any) -> None:
    server.settings = settings
    text = refusal(*SERVER, f"vllm.url={server.url}")
    assert "start it with: VLLM_SERVER_DEV_MODE=1 vllm serve" in text
    if settings != {}:
        assert "that server does not take part in training (" in text


def test_a_server_that_can_train_is_accepted(server: StandIn) -> None:
    ready.check_ready(composed(*SERVER, f"vllm.url={server.url}/"))


def test_nccl_needs_vllm_beside_the_trainer(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.settings["weight_transfer_config"] = {"backend": "nccl"}
    server.settings["model_config"]["dtype"] = "torch.bfloat16"
    chosen = (*SERVER, "hardware=gpu", f"vllm.url={server.url}")
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    assert "weights over NCCL, for which the package vllm must be installed here too" in refusal(*chosen)
    monkeypatch.setattr(ready, "find_spec", lambda name: object())
    ready.check_ready(composed(*chosen))


def test_missing_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    (tmp_path / "mine.yaml").write_text("distributed_type: DEEPSPEED")
    chosen = ("hardware=gpu", f"hardware.accelerate_config={tmp_path}/mine.yaml")
    assert "the package deepspeed is not installed; pip install 'deepspeed" in refusal(*chosen)
    (tmp_path / "mine.yaml").write_text("distributed_type: FSDP")
    ready.check_ready(composed(*chosen))


def test_an_install_line_names_the_packages_of_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package name on the index may be anybody's, and the user may have no checkout."""
    assert install_line("trackio") == "pip install trackio"
    assert install_line("vllm").startswith("pip install 'vllm")
    assert {one.name for one in requirements("bfcl")} == {"mpmath", "rank-bm25", "overrides", "filelock"}
    assert "trl" in {one.name for one in requirements()} and "pytest" not in {one.name for one in requirements()}
    monkeypatch.setattr("agentrl.core.install.DISTRIBUTION", "never-installed")
    assert install_line("bfcl") == "pip install -e '.[bfcl]' in the checkout"
