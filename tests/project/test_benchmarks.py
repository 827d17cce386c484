"""The scripts of benchmarks/ that no other test runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_what_a_script_imports_of_the_package_exists(folder):
    found = [
        f"{file.name}: {node.module}.{name.name}"
        for file in (ROOT / folder).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agentrl")
        for name in node.names
        if not hasattr(importlib.import_module(node.module), name.name)
        and importlib.util.find_spec(f"{node.module}.{name.name}") is None
    ]
    assert found == []


@pytest.mark.slow
def test_the_engine_benchmark_measures_every_arm(tmp_path):
    out = tmp_path / "engine.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks/engine.py"), "update-300", "--rounds", "1"]
    done = subprocess.run([*command, "--threads", "1", "--out", str(out)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    update = json.loads(out.read_text())
    assert list(update["arms"]) == ["trl", "padded", "packed"]
    tokens = {arm: row["tokens"]["forward"] for arm, row in update["arms"].items()}
    assert tokens["packed"] < tokens["padded"] / 2  # eight rollouts of a long prompt share it


@pytest.mark.slow
def test_a_ratio_that_fell_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compare = importlib.import_module("engine").compare
    record = tmp_path / "engine.jsonl"
    earlier = {"workload": "update-300", "arms": {"trl": {"update": 1.0}, "packed": {"update": 3.0}}, "commit": "abc"}
    record.write_text(json.dumps(earlier) + "\n")
    for now, slower in ((2.2, False), (2.0, True)):
        found = {"workload": "update-300", "arms": {"trl": {"update": 1.0}, "packed": {"update": now}}}
        assert compare(found, record) == slower
        said = capsys.readouterr().out
        assert f"packed: update {now:.2f} times faster, 3.00 at abc" in said and ("SLOWER" in said) == slower
    assert not compare({"workload": "slow-tools", "arms": {}}, record)


@pytest.mark.slow
def test_an_unknown_workload_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks/engine.py"), "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "unknown workloads: nosuch" in done.stderr


def test_a_decoding_step_starts_fewer_operations_than_that_of_generate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    decode = importlib.import_module("decode")
    steps = {}
    for layers in (2, 3):
        model = importlib.import_module("made_up").tiny_layers(layers).eval()
        for arm, sample in decode.ARMS.items():
            steps[arm, layers] = decode.middle(sample(model))
    for layers in (2, 3):
        assert steps["agentrl", layers].total() < steps["trl", layers].total()
    layer = {arm: steps[arm, 3] - steps[arm, 2] for arm in decode.ARMS}
    assert layer["agentrl"].total() < layer["trl"].total()
    kernels = {arm: decode.kernels(layer[arm]) for arm in layer}
    assert kernels["agentrl"] < 0.75 * kernels["trl"]
    norms = torch.ops.aten._fused_rms_norm.default
    assert layer["agentrl"][norms] == 4 and layer["trl"][norms] == 0
