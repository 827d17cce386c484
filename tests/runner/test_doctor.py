"""The doctor on a sound machine and on broken ones: it names each fault and its fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.config.compose import compose
from agentrl.config.networks import KNOWN
from agentrl.runner import doctor
from agentrl.runner.doctor import Finding


def findings(*arguments: str, code: str = "", **environment: str) -> tuple[int, dict[str, list[Finding]]]:
    """Return the real command's exit code and its findings by check. `code` runs before it in the same process."""
    program = f"import sys; sys.argv = ['agentrl', 'doctor', '--json', *sys.argv[1:]]\n{code}\n"
    program += "from agentrl.commands.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    by_check: dict[str, list[Finding]] = {}
    for entry in json.loads(result.stdout):
        by_check.setdefault(entry["check"], []).append(Finding(**entry))
    return result.returncode, by_check


def of(check: object, *overrides: str) -> list[Finding]:
    return list(check(compose(list(overrides))))  # type: ignore[operator]


@pytest.mark.slow
def test_a_sound_machine_passes() -> None:
    code, found = findings()
    assert code == 0
    assert {finding.verdict for group in found.values() for finding in group} <= {"ok", "skip", "warn"}
    assert found["TRL seams"][0].verdict == found["packages"][0].verdict == found["chat template"][0].verdict == "ok"


@pytest.mark.slow
def test_each_fault_of_a_broken_machine_is_named_with_its_fix(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow" / "trl-0.9.0.dist-info"  # found before the real one
    shadow.mkdir(parents=True)
    (shadow / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.9.0\n")
    code, found = findings(
        "bench=toolhop",
        f"bench.path={tmp_path / 'absent.json'}",
        code=(
            f"sys.path.insert(0, {str(shadow.parent)!r})\n"
            "import trl; del trl.GRPOTrainer._calculate_rewards\n"
            "from agentrl.sandbox import pool; pool._WITHOUT = ('namespaces', 'landlock', 'seccomp')"
        ),
    )
    assert code == 1
    (package,) = found["packages"]
    assert (package.verdict, package.fix) == ("fail", "pip install 'trl==1.16.0'")
    assert "trl 0.9.0" in package.detail
    (seam,) = found["TRL seams"]
    assert seam.verdict == "fail" and "GRPOTrainer._calculate_rewards" in seam.detail and "trl==1.16.0" in seam.fix
    (box,) = found["sandbox"]
    assert box.verdict == "warn" and "files, network, processes" in box.detail and "Landlock" in box.fix
    (data,) = found["data"]
    assert data.verdict == "fail" and "absent.json does not exist" in data.detail
    assert found["configuration"][0].verdict == "fail"  # the run would be refused for the same reason
    assert found["disk"][0].verdict == "ok"  # and the other checks ran


def test_a_gpu_run_names_what_is_missing() -> None:
    overrides = ("hardware=gpu", "vllm.mode=colocate")
    (card,), (engine,) = of(doctor.torch, *overrides), of(doctor.vllm, *overrides)
    if card.verdict == "ok":
        pytest.skip("this machine has a GPU")
    assert card.verdict == "fail" and "hardware=cpu" in card.fix
    assert engine.verdict == "fail" and "pip install 'vllm" in engine.fix


def test_too_little_memory_or_disk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = replace(KNOWN["Qwen/Qwen3-4B"], size=1e15)
    monkeypatch.setattr(doctor, "known_network", lambda config: huge)
    (memory,), (disk,) = of(doctor.memory_of_machine), of(doctor.disk)
    assert memory.verdict == disk.verdict == "fail"
    assert "model/lora=on" in memory.fix and "trainer.keep_checkpoints=1" in disk.fix


def test_a_tracker_without_an_account_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (finding,) = of(doctor.tracker, "tracker=wandb")
    assert finding.verdict == "fail" and "wandb login" in finding.fix
    assert of(doctor.tracker, "tracker=wandb_offline")[0].verdict == "ok"


def test_a_check_that_raises_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.python))
    first, second = doctor.diagnose(compose([]))
    assert (first.check, first.verdict, first.detail) == ("broken", "fail", "RuntimeError: no such thing")
    assert second.verdict == "ok"


def test_bfcl_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(doctor.bfcl, "bench=toolhop")[0].verdict == "skip"
    (data,) = of(doctor.data, "bench=bfcl")
    assert data == Finding("data", "ok", "of the bfcl-eval package")
    monkeypatch.setattr(doctor, "REQUIRED", ("no_such_module_here",))
    (finding,) = of(doctor.bfcl, "bench=bfcl")
    assert finding.verdict == "fail" and "no_such_module_here not installed" in finding.detail
    assert "pip install --no-deps bfcl-eval==2026.3.23" in finding.fix
