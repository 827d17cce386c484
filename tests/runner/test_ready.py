"""What a run would miss later is refused within seconds, in one line, before anything is made."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentrl.core.errors import UserError
from agentrl.core.install import install_line, requirements
from agentrl.runner import ready
from agentrl.runner.start import start
from tests.support.helpers import composed

GOOD = {"weight_transfer_config": {"backend": "nccl"}, "model_config": {"logprobs_mode": "processed_logprobs"}}
SERVER = ("hardware=gpu", "hardware.vllm=server")


class Replies(BaseHTTPRequestHandler):
    settings: Any = GOOD

    def do_GET(self) -> None:
        known = self.path == "/health" or (self.path.startswith("/server_info") and self.settings is not None)
        self.send_response(200 if known else 404)
        self.end_headers()
        if known and self.path != "/health":
            text = self.settings if isinstance(self.settings, str) else json.dumps({"vllm_config": self.settings})
            self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    listening = HTTPServer(("127.0.0.1", 0), Replies)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "find_spec", lambda name: object())


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        ready.check_ready(composed(*overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_vllm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    text = refusal("hardware=gpu", "hardware.vllm=colocate")
    assert text.startswith("hardware.vllm=colocate: the package vllm is not installed; pip install 'vllm")
    # algo=sft samples with transformers
    ready.check_ready(composed("hardware=gpu", "hardware.vllm=colocate", "algo=sft"))
    with pytest.raises(UserError, match="vllm is not installed"):
        start(composed("hardware=gpu", "hardware.vllm=colocate", f"runs_dir={tmp_path}"))
    assert list(tmp_path.iterdir()) == []
    assert start(composed("hardware=gpu", "hardware.vllm=server", f"runs_dir={tmp_path}", "dry_run=true")) == 0


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "http://no-such-host.invalid:8000", "http://127.0.0.1:notaport"]
)
def test_a_missing_server_is_refused(vllm_is_there: None, address: str) -> None:
    began = time.perf_counter()
    text = refusal(*SERVER, f"hardware.vllm_url='{address}'")
    assert time.perf_counter() - began < 5
    assert text.startswith(f"hardware.vllm_url={address}: no vLLM server answers there (")
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in text and "hardware.vllm=colocate" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "does not take part in training (HTTP 404 for /server_info)"),
        ("<html>", "does not take part in training"),
        ({}, "cannot take new weights"),
        (GOOD | {"weight_transfer_config": None}, "cannot take new weights"),
        (GOOD | {"model_config": {"logprobs_mode": "raw_logprobs"}}, "log-probs before the temperature"),
    ],
)
def test_a_server_that_cannot_train_is_refused(
    vllm_is_there: None, server: str, settings: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replies, "settings", settings)
    text = refusal(*SERVER, f"hardware.vllm_url={server}")
    assert words in text and "start it with: VLLM_SERVER_DEV_MODE=1 vllm serve" in text


def test_a_server_that_can_train_is_accepted(vllm_is_there: None, server: str) -> None:
    ready.check_ready(composed(*SERVER, f"hardware.vllm_url={server}/"))


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
    assert install_line("bfcl") == "pip install '.[bfcl]' in the checkout"
