"""What is installed and under which name: pyproject.toml, the constraints and the words about installing agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from agentrl import DISTRIBUTION

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHARED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def pins(name: str) -> dict[str, str]:
    lines = [line.split(";")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1]
        for line in lines
        if "==" in line and not line.startswith("#")
    }


def test_the_distribution_has_a_name_of_its_own() -> None:
    """`agentrl` on the public index is somebody else's package: no line of ours may fetch it."""
    assert PROJECT["name"] == DISTRIBUTION != "agentrl"
    assert "agentrl" in PROJECT["scripts"]
    own = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml", ROOT / "Makefile"]
    for file in [*own, *(ROOT / "docs").glob("*.md"), *(ROOT / "agentrl").rglob("*.py")]:
        strange = re.findall(
            r"(?:pip install|uv add|uv pip install)[^\n`]*[ '\"]agentrl(?![\w-])[^\n`]*", file.read_text()
        )
        assert strange == [], file
        assert re.findall(r"['\"]agentrl\[", file.read_text()) == [], file


def test_an_environment_with_vllm_differs_from_ours_in_nothing_that_trains() -> None:
    ours, with_vllm = pins("constraints.txt"), pins("constraints-vllm.txt")
    assert {name: ours[name] for name in SHARED} == {name: with_vllm[name] for name in SHARED}
    (vllm,) = [Requirement(text) for text in PROJECT["optional-dependencies"]["vllm"]]
    assert vllm.specifier.contains(with_vllm["vllm"]) and "vllm" not in ours


def test_what_is_pinned_lies_within_what_is_declared() -> None:
    for name in ("constraints.txt", "constraints-vllm.txt"):
        pinned = pins(name)
        for requirement in map(Requirement, PROJECT["dependencies"]):
            assert requirement.specifier.contains(pinned[requirement.name]), (name, requirement.name)
