"""The structure that CONTRIBUTING.md promises, read from the imports: lazy ones and those for types count, too."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "agentrl"
MATHEMATICS = (
    "agentrl.objectives",
    "agentrl.advantages",
    "agentrl.schedules",
    "agentrl.dual",
    "agentrl.analysis.attention",
)
PLAIN = {"agentrl.trajectory", "agentrl.traces.records"}  # the data that mathematics may know: no code of others behind


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
    assert order.index("agentrl.config.schema") < order.index("agentrl.benches.ftrl") < order.index("agentrl.worker")


def test_mathematics_imports_torch_and_nothing_else() -> None:
    for name, used in imports().items():
        if name.startswith(MATHEMATICS):
            strange = {other for other in used if other not in PLAIN and not other.startswith(MATHEMATICS)}
            assert strange <= {"__future__", "collections", "hashlib", "math", "torch"}, name


def test_hydra_is_known_where_the_command_line_composes_alone() -> None:
    knowing = {name for name, used in imports().items() if "hydra" in used}
    assert knowing == {"agentrl.cli", "agentrl.config.compose", "agentrl.store.sweeps"}


def test_the_configuration_knows_nothing_of_what_it_configures() -> None:
    for name, used in imports().items():
        if name.startswith("agentrl.config"):
            outside = {
                other for other in used if other.startswith("agentrl.") and not other.startswith("agentrl.config")
            }
            assert outside <= {"agentrl.errors", "agentrl.install", "agentrl.traces.records"}, name


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
