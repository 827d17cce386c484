"""No secret reaches a file: not through values, records, tracebacks, provenance or a worker's output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.core.errors import UserError
from agentrl.store.redact import mask_secrets, refuse_secrets
from agentrl.store.run import RunDirectory
from tests.support.command_line import agentrl
from tests.support.helpers import composed

SECRET = 'k"9f\\Zq-77 x'  # characters that JSON escapes
FORMS = ["sk-" + "aB3_" * 6, "hf_" + "x1" * 12, "ghp_" + "Z9" * 18, "AKIA" + "A1B2" * 4]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)


def test_masking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mask_secrets(f"a {SECRET} b {SECRET}") == "a <MY_API_KEY> b <MY_API_KEY>"
    for key in FORMS:
        assert mask_secrets(f"key={key};") == "key=<secret>;"
    assert (
        mask_secrets("https://me:pass@host/v1 and https://host:80/a@b")
        == "https://<secret>@host/v1 and https://host:80/a@b"
    )
    monkeypatch.setenv("DB_PASSWORD", SECRET + "-longer")
    assert mask_secrets(SECRET + "-longer") == "<DB_PASSWORD>", "the longer of two that begin alike"
    for name, value in (("SHORT_KEY", "true"), ("TOKENIZERS_PARALLELISM", "parallel!"), ("SSH_KEY", str(tmp_path))):
        monkeypatch.setenv(name, value)
        assert mask_secrets(value) == value
    plain = "seed=1 model=qwen2.5-0.5b ${oc.env:MY_API_KEY} risk-of-sk-ill base_url=http://localhost:8000/v1"
    assert mask_secrets(plain) == plain


def test_records_are_masked_and_stay_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN_SECRET", "12345678")
    run = RunDirectory(tmp_path)
    run.append(run.metrics_path, {"step": 12345678, "x": 0.12345678, "text": f"12345678 {SECRET}", SECRET: [SECRET]})
    assert run.read_metrics() == [
        {"step": 12345678, "x": 0.12345678, "text": "<PIN_SECRET> <MY_API_KEY>", "<MY_API_KEY>": ["<MY_API_KEY>"]}
    ]
    run.set_status("failed", error=f"Traceback: {SECRET}")
    assert run.status()["error"] == "Traceback: <MY_API_KEY>"


def test_values_that_hold_a_secret_are_refused_without_repeating_them() -> None:
    config = composed()
    refuse_secrets(config)
    config.tracker.tags = ["fine", SECRET]
    with pytest.raises(UserError, match=r"^tracker\.tags holds a secret") as error:
        refuse_secrets(config)
    assert SECRET not in str(error.value)


def everything(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "arguments",
    [
        ("tracker.project=sk-abcdefghijklmnopqrstuvwx",),
        ("-m", "seed=0,1", "tracker.project=sk-abcdefghijklmnopqrstuvwx"),
        ("tracker.project=${oc.env:MY_API_KEY}",),
    ],
)
def test_the_command_line_refuses_them_before_a_file_is_written(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = agentrl(tmp_path, "dry_run=true", *arguments)
    assert done.returncode == 2, done.stderr
    assert "holds a secret" in done.stderr
    assert SECRET not in done.stdout + done.stderr and "sk-abc" not in done.stdout + done.stderr
    assert list(tmp_path.rglob("config.yaml")) == [] and "sk-abc" not in everything(tmp_path)


@pytest.mark.slow
def test_provenance_and_a_workers_traceback_are_masked(tmp_path: Path) -> None:
    """An exception that quotes a secret, in the real worker: status.json, its output, and everything else."""
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}"))
    assert run is not None
    code = (
        "import runpy, sys, os, transformers\n"
        "def fail(*_): raise RuntimeError('login with ' + os.environ['MY_API_KEY'])\n"
        "transformers.utils.logging.set_verbosity_error = lambda: None\n"
        "import agentrl.benches; agentrl.benches.load_bench = fail\n"
        "sys.argv = ['worker', sys.argv[1]]\n"
        "runpy.run_module('agentrl.runner.worker', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    status = json.loads(run.status_path.read_text())
    assert status["status"] == "failed" and "login with <MY_API_KEY>" in status["error"]
    assert "login with <MY_API_KEY>" in done.stderr
    assert SECRET not in everything(tmp_path) + done.stdout + done.stderr
