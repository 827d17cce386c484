"""The structure that CONTRIBUTING.md promises, read from the imports: lazy ones and those for types count, too."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "agentrl"
# From the ground up: a module imports from its own floor and from those below, never from one above.
FLOORS = (
    "core",  # the contracts, and what everything may use
    "objectives",  # the mathematics
    "schemas",  # JSON schemas of tool parameters
    "config",  # keys, their checks, composition
    "sandbox",  # runs the code of tools
    "chat",  # messages to tokens, text to calls
    "store",  # files that must survive
    "endpoint",  # a model behind a server
    "models",  # checkpoints and adapters
    "scoring",  # log-probs of token sequences
    "rewards",
    "traces",  # files of expert traces, and what a teacher writes
    "mining",  # expert traces without a teacher
    "judges",
    "benches",
    "rollout",  # plays episodes
    "tiny",  # the packaged models
    "cost",  # what a run needs
    "evaluation",
    "trainers",
    "report",
    "tracking",
    "runner",  # starts, watches and does the work of a run
    "commands",  # the command line
)
ENTRANCES = {"agentrl", "agentrl.__main__"}
PLAIN = {"agentrl.core.trajectory", "agentrl.core.expert_trace"}  # the data that mathematics may know


@cache
def imports() -> dict[str, set[str]]:
    """Module of the package -> what it imports: modules of the package in full, of others the first name."""
    files = {}
    for file in PACKAGE.rglob("*.py"):
        name = ".".join(("agentrl", *file.relative_to(PACKAGE).with_suffix("").parts))
        files[name.removesuffix(".__init__")] = file
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "agentrl":
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    found[name].add(module if module in files else node.module)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[name].add(node.module.split(".")[0])
    return found


def test_no_two_files_import_each_other_by_any_way() -> None:
    ours = {name: {other for other in used if other in imports()} for name, used in imports().items()}
    order = list(TopologicalSorter(ours).static_order())  # CycleError names the files of a circle
    assert (
        order.index("agentrl.config.benches")
        < order.index("agentrl.benches.ftrl")
        < order.index("agentrl.runner.worker")
    )


def test_the_top_level_of_the_package_holds_folders_alone() -> None:
    files = {file.name for file in PACKAGE.iterdir() if file.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    folders = {file.name for file in PACKAGE.iterdir() if file.is_dir() and any(file.glob("*.py"))}
    assert folders == set(FLOORS)


def climbs(imported: dict[str, set[str]]) -> list[str]:
    """Imports of a module on a higher floor than its importer."""
    return [
        f"{name} imports {other}"
        for name, used in imported.items()
        for other in sorted(used)
        if name not in ENTRANCES and other.startswith("agentrl") and floor_of(other) > floor_of(name)
    ]


def floor_of(module: str) -> int:
    return len(FLOORS) if module in ENTRANCES else FLOORS.index(module.split(".")[1])


def test_no_import_climbs_to_a_higher_floor() -> None:
    assert climbs(imports()) == []


def test_an_import_that_climbs_is_found() -> None:
    made_up = {
        "agentrl.benches.minihop": {"agentrl.core.bench", "agentrl.benches.execution", "torch"},
        "agentrl.rewards.turns": {"agentrl.benches.minihop"},
        "agentrl.trainers.grpo": {"agentrl"},
    }
    assert climbs(made_up) == [
        "agentrl.rewards.turns imports agentrl.benches.minihop",
        "agentrl.trainers.grpo imports agentrl",
    ]


def test_mathematics_imports_torch_and_nothing_else() -> None:
    for name, used in imports().items():
        if name.startswith("agentrl.objectives"):
            strange = {other for other in used if other not in PLAIN and not other.startswith("agentrl.objectives")}
            assert strange <= {"__future__", "collections", "dataclasses", "hashlib", "math", "torch", "typing"}, name


def trainers_named(source: str) -> set[str]:
    """Names in a source that are those of trainers, TRL's and transformers' too."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [str(getattr(node, "id", getattr(node, "attr", ""))) for node in nodes]
    names += [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return {name for name in names if name.endswith("Trainer")}


def test_rollouts_and_evaluation_know_no_trainer() -> None:
    files = [file for floor in ("rollout", "evaluation") for file in (PACKAGE / floor).rglob("*.py")]
    assert {file.name: found for file in files if (found := trainers_named(file.read_text(encoding="utf-8")))} == {}
    assert trainers_named("from trl import GRPOTrainer as G\ntrl.SFTTrainer(x)\n") == {"GRPOTrainer", "SFTTrainer"}


def test_hydra_is_known_where_the_command_line_composes_alone() -> None:
    knowing = {name for name, used in imports().items() if "hydra" in used}
    assert knowing == {"agentrl.commands.cli", "agentrl.config.compose", "agentrl.store.sweeps"}


def test_every_text_file_is_opened_as_utf_8_whatever_the_locale() -> None:
    root = PACKAGE.parent
    files = [file for folder in ("agentrl", "benchmarks", "examples") for file in (root / folder).rglob("*.py")]
    found = [f"{file.relative_to(root)}:{line}" for file in files for line in opened_as_the_locale_says(file)]
    assert found == []


def opened_as_the_locale_says(file: Path) -> list[int]:
    """Lines of calls that read or write text and name no encoding."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [
        call.lineno for call in calls if reads_text(call) and not {"encoding", None} & {w.arg for w in call.keywords}
    ]


def reads_text(call: ast.Call) -> bool:
    words = {word.arg: word.value for word in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else "builtins"
    if name in ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile") and (owner, name) != ("os", "open"):
        position = 1 if owner in ("builtins", "os", "io", "gzip", "tempfile") else 0  # of the mode
        usual = ast.Constant("w+b" if "Temporary" in name else "r")
        mode = call.args[position] if len(call.args) > position else words.get("mode", usual)
        return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
    of_a_path = name in ("read_text", "write_text") and owner not in ("builtins", "durable")
    return of_a_path or ("text" in words and isinstance(words["text"], ast.Constant) and words["text"].value is True)


def test_every_part_of_a_text_in_several_lines_fills_in_its_values() -> None:
    """A string beside an f-string that lacks the `f` shows its braces to the reader."""
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr)
        and any(
            isinstance(one, ast.Constant) and re.search(r"(?<!\$)\{[A-Za-z_]\w*\}", one.value) for one in node.values
        )
    ]
    assert found == []
