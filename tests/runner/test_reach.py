"""What cannot work is refused within seconds, in one line that names the key as typed, before anything is made."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentrl.commands.eval import main as eval_command
from agentrl.commands.traces import main as traces_command
from agentrl.core.errors import UserError
from agentrl.endpoint import connection
from agentrl.models import hub as hub_lookup
from agentrl.runner import reach
from tests.support.bench_files import bench_keys
from tests.support.command_line import run_here
from tests.support.helpers import composed

NOBODY = "http://127.0.0.1:9/v1"  # the discard port: no server listens there


class Hub(BaseHTTPRequestHandler):
    """A hub that knows one model, and refuses another without a token."""

    def do_GET(self) -> None:
        known = {"/api/models/someone/agent": 200, "/api/models/someone/gated": 401}
        self.send_response(known.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    listening = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    for name in hub_lookup.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    hub_lookup._hub_refusal.cache_clear()
    yield address
    listening.shutdown()
    listening.server_close()
    hub_lookup._hub_refusal.cache_clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: Any, *arguments: str) -> str:
    """Return the one line that refuses a command line, within five seconds and without writing to the disk."""
    began = time.perf_counter()
    assert run_here(*arguments) == 2
    assert time.perf_counter() - began < 5
    said = capsys.readouterr()
    assert "Run directory" not in said.out
    assert not Path("runs").exists()
    (line,) = said.err.splitlines()
    return str(line)


# --- models and data --------------------------------------------------------------------------------------------------


def test_an_unknown_hub_id_is_refused(here: Path, capsys: Any, hub: str) -> None:
    line = refused(capsys, "model=someone/agnet")
    assert line.startswith("agentrl: error: model=someone/agnet: not in the hub's cache, and the hub has no model")
    assert "HTTP 401" in refused(capsys, "model=someone/gated")
    assert reach.check_reach(composed("model=custom", "model.name=agent", "model.path=someone/agent")) == []


def test_a_model_that_needs_the_network_is_refused_without_it(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(capsys, "model=someone/offline")  # tests run with HF_HUB_OFFLINE=1
    assert "model=someone/offline: not in the hub's cache, and HF_HUB_OFFLINE" in line
    for name in hub_lookup.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    hub_lookup._hub_refusal.cache_clear()
    assert f"{NOBODY} cannot be reached (Connection refused)" in refused(capsys, "model=someone/agent")
    assert "bench.hub_id=bytedance-research/ToolHop" in refused(capsys, "bench=toolhop")
    assert "judge.path=some/judge" in refused(capsys, "algo=hipo", "judge=local", "judge.path=some/judge")
    hub_lookup._hub_refusal.cache_clear()


def test_the_base_of_an_adapter_is_checked(here: Path, capsys: Any) -> None:
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    assert "its base someone/base: not in the hub's cache" in refused(capsys, "model=adapter", "model/lora=on")


def test_cached_models_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--agent"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub_lookup.is_in_hub_cache("someone/agent")
    assert not hub_lookup.is_in_hub_cache("someone/agent", revision="other")
    assert not hub_lookup.is_in_hub_cache("someone/else")
    reach.check_reach(composed("model=custom", "model.name=agent", "model.path=someone/agent"))


def test_an_encoder_that_cannot_be_had_is_refused_with_the_way_to_make_one(here: Path, capsys: Any) -> None:
    line = refused(capsys, "algo=hipo", "bench=minihif", "judge=embedding")
    assert "judge.path=sentence-transformers/all-MiniLM-L6-v2: not in the hub's cache" in line
    assert line.endswith("run make minilm and set judge.path=models/minilm")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["model=weights.bin"], "model=weights.bin is a file"),
        (["model=custom", "model.path=weights.bin"], "model.path=weights.bin: is a file"),
        (["model=a/b/c"], "model=a/b/c is neither a preset nor a directory"),
        (["model=gone.gguf"], "model=gone.gguf: no such file; correct the path"),
        (["model=custom", "model.path=a/b/c"], "model.path=a/b/c: is not a checkpoint"),
        (["model=empty"], "model=empty has neither config.json nor adapter_config.json; give a checkpoint's directory"),
        (["model=many"], "adapter_config.json; did you mean the run many/seed1?"),
    ],
)
def test_a_path_without_a_checkpoint_is_refused(here: Path, capsys: Any, typed: list[str], words: str) -> None:
    (here / "weights.bin").touch()
    (here / "empty").mkdir()
    for name in ("seed0", "seed1"):
        (here / "many" / name).mkdir(parents=True)
        (here / "many" / name / "status.json").touch()
    assert words in refused(capsys, *typed)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["bench.train_tasks=3"], "trainer.prompts_per_batch=16: there are 3 training tasks; lower it"),
        (
            ["bench=toolhop", "bench.path=hop.json"],
            "bench.path={here}/hop.json leaves no row for the train",
        ),
        (["bench=toolhop", "bench.path=damaged.json"], "damaged.json, row 0, id: missing"),
        (["bench=ftrl", "bench.path=ftrl"], "ftrl has only test rows"),
        (["bench=ftrl", "bench.path=ftrl", "dry_run=true"], "ftrl has only test rows"),
        (
            ["bench=ftrl", "bench.path=ftrl", "bench.train_on_test=true", "trainer.prompts_per_batch=4"],
            "are 3 training tasks",
        ),
        (
            ["algo=sft", "bench=verih", "bench.path=verih"],
            "no row is left for the train split; all rows",
        ),
        (
            ["algo=eval", "bench=pairs", "bench.path=broken.jsonl"],
            "broken.jsonl, row 1 (counted from 0) is no",
        ),
    ],
)
def test_too_little_data_is_refused(here: Path, capsys: Any, typed: list[str], words: str) -> None:
    keys = bench_keys(here)
    rows = json.loads((here / "ToolHop.json").read_text())
    (here / "hop.json").write_text(json.dumps(rows[:1]))
    (here / "damaged.json").write_text(json.dumps([{}]))
    (here / "broken.jsonl").write_text((here / "pairs.jsonl").read_text().splitlines()[0] + "\n{")
    verih = here / "verih" / "test.json"
    verih.write_text(json.dumps([row | {"sys_prompt": "One."} for row in json.loads(verih.read_text())]))
    assert keys and words.format(here=here) in refused(capsys, *typed)


# --- GPUs and servers -------------------------------------------------------------------------------------------------


def test_a_missing_gpu_is_refused(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.0+cu128")
    monkeypatch.setattr(reach, "driver_gpus", lambda: 0)
    assert "hardware=gpu needs 1 GPU(s), but the driver shows 0" in refused(capsys, "hardware=gpu")
    assert "needs 4 GPU(s), but the driver shows 0" in refused(capsys, "hardware=multi_gpu", "model=qwen3-4b")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.0+cpu")
    assert "a build without CUDA" in refused(capsys, "hardware=gpu")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.0")
    monkeypatch.setattr(reach, "driver_gpus", lambda: None)  # not an NVIDIA GPU: PyTorch checks it
    assert reach.check_reach(composed("hardware=gpu")) == []
    assert run_here("hardware=gpu", "dry_run=true") == 0  # an estimate needs no GPU


def test_a_dead_endpoint_is_refused(here: Path, capsys: Any) -> None:
    assert eval_command([f"endpoint={NOBODY}", "model=m", "bench=minihop"]) == 2
    assert f"endpoint={NOBODY}: no server answers there (Connection refused)" in capsys.readouterr().err
    assert not (here / "runs").exists()
    with pytest.raises(UserError, match=f"endpoint={NOBODY}: no server answers"):
        traces_command(["build", "bench=minihop", "source=teacher", "teacher=m", f"endpoint={NOBODY}", "out=t.jsonl"])
    judged = ("algo=hipo", "judge=openai", "judge.model=m", f"judge.base_url={NOBODY}")
    assert f"judge.base_url={NOBODY}: no server answers there" in refused(capsys, *judged)
    (here / "verdicts.sqlite").touch()
    (warning,) = reach.check_reach(composed(*judged, "judge.cache=verdicts.sqlite"))
    assert "only the verdicts in verdicts.sqlite can be used" in warning


def test_a_server_that_accepts_connections_but_never_answers_is_refused(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "ANSWER_S", 0.3)
    judged = ("algo=hipo", "judge=openai", "judge.model=m")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        assert eval_command([f"endpoint={url}", "model=m", "bench=minihop"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"endpoint={url}: no server answers there (it accepts connections but gives no answer in 0.3 s)" in line
        assert f"judge.base_url={url}: no server answers there (it accepts" in refused(
            capsys, *judged, f"judge.base_url={url}"
        )
        with pytest.raises(UserError, match="gives no answer"):
            traces_command(["build", "bench=minihop", "source=teacher", "teacher=m", f"endpoint={url}", "out=t.jsonl"])


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_any_answer_of_a_server_is_enough(here: Path, status: int) -> None:
    class Anyone(Hub):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Anyone) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        reach.check_server("endpoint", f"http://127.0.0.1:{listening.server_port}/v1")
        listening.shutdown()
    assert asked == ["/v1/models"]


def test_a_slow_name_look_up_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE_S", 0.1)
    monkeypatch.setattr(connection, "_connect", lambda host, port: time.sleep(2))
    with pytest.raises(UserError, match=r"algo.endpoint.base_url=http://slow: no server answers there \(no answer in"):
        reach.check_server("algo.endpoint.base_url", "http://slow")


# --- the key that was typed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["bench=ftrl", "ftrl.path=absent"], "ftrl.path=absent"),
        (["bench=ftrl", "bench.path=absent"], "bench.path=absent"),
        (["samples=0"], "samples=0: must be at least 1"),
        (["eval.samples=0"], "eval.samples=0: must be at least 1"),
        (["samples=many"], "samples='many' must be of type int"),
        (["temperature=-1"], "temperature=-1"),
        (["endpoint=localhost:1", "model=m"], "endpoint=localhost:1: must begin with http"),
        (["bench=minihop", "minihop.test_tasks=0"], "minihop.test_tasks=0"),
        (["model=someone/offline"], "model=someone/offline: not in the hub's cache"),
    ],
)
def test_errors_of_eval_name_the_key_as_typed(here: Path, capsys: Any, typed: list[str], words: str) -> None:
    try:
        code, text = eval_command(typed), capsys.readouterr().err
    except UserError as error:
        code, text = 2, f"agentrl: error: {error}"
    assert code == 2
    assert text.startswith("agentrl: error: ") and text.removeprefix("agentrl: error: ").startswith(words.split("=")[0])
    assert words in text.replace(str(here) + "/", "") and len(text.strip().splitlines()) == 1
    assert not (here / "runs").exists()


def test_every_evaluation_is_checked_before_the_first_begins(here: Path, capsys: Any) -> None:
    assert eval_command(["model=tiny", "bench=minihop,ftrl,toolhop", "ftrl.path=absent", "toolhop.path=nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2].split("=")[0].strip() for line in lines] == ["ftrl.path", "toolhop.path"]
    assert not (here / "runs").exists()


def test_a_sweep_names_what_one_of_its_jobs_is_missing(here: Path, capsys: Any) -> None:
    assert run_here("-m", "model=tiny,someone/offline", "trainer.max_steps=1") == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("agentrl: error: model=someone/offline: not in the hub's cache")
    assert last == "1 of 2 jobs cannot work; none was started."
    assert not (here / "runs").exists()
