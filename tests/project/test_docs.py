"""The documentation: every page can be found, and every command that it shows is one that agentrl takes.

`make site` checks links and anchors.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentrl.commands import eval as eval_command
from agentrl.commands import judge
from agentrl.commands.arguments import split_keys, split_places
from agentrl.commands.cli import COMMANDS
from agentrl.config.compose import CONF, compose
from agentrl.config.load import all_keys
from agentrl.config.rules import machine, validate
from agentrl.store.identity import MAY_MOVE, is_in_identity
from tests.project.test_structure import FLOORS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def pages(entry: Any) -> Iterator[str]:
    """File names at the leaves of mkdocs' navigation."""
    if isinstance(entry, str):
        yield entry
    for below in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from pages(below)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).is_file(), target


OWN = [file for folder in ("agentrl", "benchmarks", "examples", "tests") for file in (ROOT / folder).rglob("*.py")]
NAMED = re.compile(r"`((?:\w+/)*\w+\.py)(?:: ([\w., ]+))?`|`((?:agentrl|conf|tests|benchmarks|examples)/[\w./{},-]*)`")


def missing_names(text: str) -> list[str]:
    """Files and folders of the repository that a page names and that are not there; functions not in their file."""
    missing = []
    for file, names, place in NAMED.findall(text):
        if place:
            missing += [one for one in alternatives(place) if not (ROOT / one).exists()]
            continue
        code = "".join(one.read_text() for one in OWN if f"/{one.relative_to(ROOT)}".endswith(f"/{file}"))
        missing += [] if code else [file]
        words = [name.rpartition(".")[2] for name in names.split(", ") if name] if code else []
        missing += [f"{file}: {name}" for name in words if not re.search(rf"(?:def|class) {name}\b", code)]
    return missing


def alternatives(place: str) -> list[str]:
    """`a/{b,c}.py` -> `a/b.py` and `a/c.py`."""
    head, opened, rest = place.partition("{")
    inside, _, tail = rest.partition("}")
    return [head + one + tail for one in inside.split(",")] if opened else [place]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_files_and_functions_that_a_page_names_exist(page: Path) -> None:
    own = {"mine/bench/sums.yaml"}  # the reader's
    assert [name for name in missing_names(page.read_text()) if name not in own] == []


def test_a_name_that_is_not_there_is_found() -> None:
    text = "`agentrl/core/bench.py: Task, Gone` `pact.py: anchor_gates` `agentrl/gone/` `agentrl/{core,none}/` `no.py`"
    assert missing_names(text) == ["agentrl/core/bench.py: Gone", "agentrl/gone/", "agentrl/none/", "no.py"]


def test_the_floor_plan_drawn_in_contributing_is_the_one_that_holds() -> None:
    drawing = re.findall(r"```\n( commands.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)[0]
    assert [line.split()[0] for line in reversed(drawing.splitlines())] == list(FLOORS)


WIDE = 84  # columns of code that a page of the site shows at 1280 px; longer lines wrap


def test_code_is_not_wider_than_the_page() -> None:
    """Lines of shell, YAML and output. Python listings of extending.md have the whole width (`hide: [toc]`)."""
    wide = [
        f"{page.name}: {line}"
        for page in PAGES
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if len(line) > WIDE and not (page.name == "extending.md" and language == "python")
    ]
    assert wide == []


# -- commands ----------------------------------------------------------------------------------------------------------


def shown(text: str) -> Iterator[list[str]]:
    """The words of every agentrl command of a page: lines of its shell blocks, and what stands between backticks."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        pending = ""
        for line in block.replace("\\\n", " ").splitlines():
            pending += line + "\n"
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quote is open: the command goes on in the next line
                continue
            pending = ""
            yield from parts(words)
    for code in re.findall(r"`(agentrl [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield from parts(shlex.split(code))


def parts(words: list[str]) -> Iterator[list[str]]:
    """The commands of one line that are agentrl's, without the program's name."""
    command: list[str] = []
    for word in [*words, ";"]:
        command.append(word.rstrip(";"))
        if word.endswith(";") or word == "&&":
            if command[0] == "agentrl":
                yield [part for part in command[1:] if part not in ("", "&&")]
            command = []


def test_commands_are_found_in_a_page() -> None:
    page = (
        "```bash\nagentrl a=1 \\\n  'b=[1,\n 2]'   # why\nmake run && agentrl -m c=1; agentrl d\n```\n`agentrl e=...`"
    )
    assert list(shown(page)) == [["a=1", "b=[1,\n 2]"], ["-m", "c=1"], ["d"], ["e=..."]]


def understood(words: list[str]) -> None:
    """Raise what the command line would say of the words, short of loading or reading anything."""
    match words:
        case [verb, *rest] if verb in COMMANDS:
            if rest and not {"-h", "--help"} & set(rest):
                verb_understood(verb, rest)
        case _ if {"-h", "--help", "-sc"} & set(words):
            pass
        case _:
            run_understood([word for word in words if word != "-m"])


def run_understood(words: list[str]) -> None:
    if "--cfg" in words:
        words[words.index("--cfg") : words.index("--cfg") + 2] = []
    swept = "-m" in words or any(word.startswith("sweep=") for word in words)
    own = [word for word in words if not word.startswith(("hydra/", "hydra."))]
    single = [re.sub(r"^(\w[\w.]*)=(\w[^,\[(]*),.*$", r"\1=\2", word) for word in own]  # a sweep's first value
    single = [re.sub(r"=(interval|tag)\(.*", "=0.5", word) for word in single]
    config = compose([word for word in single if not (swept and word.startswith("sweep="))])
    for word in own:
        if word.startswith("sweep="):
            assert (CONF / "sweep" / f"{word.partition('=')[2]}.yaml").is_file(), word
    validate(config)


def verb_understood(verb: str, rest: list[str]) -> None:
    module = importlib.import_module(COMMANDS[verb])
    if verb == "eval":
        own, overrides = split_keys(rest, module.KEYS)
        model = own.get("model", "tiny") if "endpoint" in own else "tiny"  # the model may be a run, which is not there
        benches, _ = eval_command._benches(own, [model])
        for bench in benches:
            eval_command.compose_job(model, bench, own, overrides, benches, [model])
    elif verb in ("doctor", "score", "traces", "analyse", "plan"):
        line = " ".join(rest).replace("--json", "")
        own, overrides = split_keys([word for word in line.split() if "=" in word], getattr(module, "KEYS", {}))
        compose(overrides)
    elif verb == "ls":
        known = {"status", "name", "algo", "model", "bench", *(key for key, *_ in all_keys())}
        assert {word.split("=")[0] for word in rest if "=" in word} <= known, rest
    elif verb == "resume":
        assert not any(
            is_in_identity(key) and key not in MAY_MOVE for key in (word.split("=")[0] for word in rest[1:])
        ), rest
    else:
        keys = {"judge": {**judge.COMPARE_KEYS, **judge.DISTILL_KEYS}}.get(verb) or module.KEYS
        split_places(rest, keys)


UNFINISHED = [["algo=split"], ["doctor", "model=..."], ["score", "..."]]  # what a page leaves open on purpose
SCENERY = {  # what a page has the reader make or own beforehand
    "mine/bench/short.yaml": "defaults: [minihop]\ntrain_tasks: 100\n",
    "mine/bench/sums.yaml": "defaults: [custom]\npath: examples/bench_sums.py\noptions: {largest: 20, tasks: 32}\n",
    "checkpoint/config.json": "{}",
    "runs/hard_base/base/config.json": "{}",
    "runs/cold/seed0/config.json": "{}",
    "runs/rules/seed0/config.json": "{}",
    "models/smollm2-135m/config.json": "{}",
    "runs/minihop-tiny-sft/s0-1a2b3c4d/config.json": "{}",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "GGUF",
    "fsdp.yaml": "distributed_type: FSDP\n",
    "small-judge/distilled.json": "{}",
    "models/minilm/config.json": "{}",
    "models/minilm/1_Pooling/config.json": "{}",
    "verih_rules/traces.jsonl": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "find_spec", str)  # the page says which optional packages to install
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in SCENERY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for words in shown(page.read_text()):
        if words in UNFINISHED:
            continue
        for name in re.findall(
            r"(?:path|pairs|traces|accelerate_config)=(?!\.\.\.|examples)([\w./-]+)", " ".join(words)
        ):
            if not name.startswith("Qwen/"):  # a file of the reader's own
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).touch() if Path(name).suffix else Path(name).mkdir(exist_ok=True)
        try:
            understood(words)
        except Exception as error:
            raise AssertionError(f"{page.name}: agentrl {shlex.join(words)}: {error}") from error
