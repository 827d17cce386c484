"""What is installed and under which name: pyproject.toml, the constraints and the words about installing agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import agentrl
from agentrl import DISTRIBUTION
from agentrl.benches.bfcl.simulator import VERSION as BFCL

ROOT = Path(__file__).resolve().parents[2]
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


# -- uv.lock, the image, the hooks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lock() -> dict[str, Any]:
    return tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))


def test_the_lock_is_of_these_requirements(lock: dict[str, Any]) -> None:
    """What `uv lock --check` says, where there is no uv."""
    (own,) = [package for package in lock["package"] if package["name"] == DISTRIBUTION]
    locked = {(one["name"], one.get("specifier", "")) for one in own["metadata"]["requires-dist"]}
    extras = PROJECT["optional-dependencies"]
    declared = [
        Requirement(text) for text in [*PROJECT["dependencies"], *(t for texts in extras.values() for t in texts)]
    ]
    wanted = {(one.name, frozenset(map(str, one.specifier))) for one in declared if one.name != DISTRIBUTION}
    found = {(name, frozenset(filter(None, text.split(",")))) for name, text in locked if name != DISTRIBUTION}
    assert {name for name, _ in found} == {name for name, _ in wanted}
    assert found == wanted, "run `make lock`"


def test_the_lock_holds_what_the_constraints_name(lock: dict[str, Any]) -> None:
    versions: dict[str, set[str]] = {}
    for package in lock["package"]:
        versions.setdefault(package["name"], set()).add(package.get("version", ""))
    for name in (Requirement(text).name for text in PROJECT["dependencies"]):
        assert pins("constraints.txt")[name] in versions[name], name
        assert pins("constraints-vllm.txt")[name] in versions[name], name


def test_the_image_installs_what_make_setup_does() -> None:
    image, make = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", image, re.MULTILINE))
    assert arguments["BFCL"] == f"bfcl-eval=={BFCL}" and f"BFCL := bfcl-eval=={BFCL}" in make
    assert (
        arguments["TORCH"] == f"torch=={pins('constraints.txt')['torch']}" and f"TORCH := {arguments['TORCH']}" in make
    )
    shipped = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists() and any(Path(name).match(kept[1:]) for kept in shipped if kept[0] == "!"), (
                name
            )
    extras = PROJECT["optional-dependencies"]
    assert arguments["EXTRAS"] in extras and (ROOT / arguments["CONSTRAINTS"]).is_file()


def test_licence_citation_and_changelog_are_of_this_version() -> None:
    assert PROJECT["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (agentrl.__version__, "Apache-2.0")
    assert re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[-1] == "0.1.0"
    assert f"## {agentrl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_hooks_run_what_make_lint_and_make_type_do() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for hook in local["hooks"]]
    assert [entry.split()[0] for entry in entries] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
    assert all(hook["language"] == "system" for hook in local["hooks"])
