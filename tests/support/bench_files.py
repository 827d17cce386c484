"""Small files for every bench of conf/bench that reads any, in the forms that docs/ describes."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentrl.config.benches import BENCHES
from tests.support.toolhop_rows import rows as toolhop_rows

ROOT = Path(__file__).resolve().parents[2]
BFCL_FILE = "BFCL_v4_multi_turn_base.json"


def write(file: Path, rows: list[Any]) -> Path:
    """JSON lines, or one list where the name ends in .json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(json.dumps(rows) if file.suffix == ".json" else lines, encoding="utf-8")
    return file


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"Rule {number}."}, {"role": "user", "content": "Please name ant bat."}]


def bench_keys(folder: Path) -> dict[str, list[str]]:
    """For every bench its keys as `agentrl eval` takes them, with the files they name; directories where it may be."""
    pairs = [{"system": f"Rule {n}.", "user": "Name ant.", "kind": ("conflict", "aligned")[n % 2]} for n in range(8)]
    made: dict[str, Path] = {
        "ftrl": write(folder / "ftrl" / "test.jsonl", [_ftrl_row(n) for n in range(4)]).parent,
        "toolhop": write(folder / "ToolHop.json", toolhop_rows()),
        "verih": write(folder / "verih" / "test.json", [_verih_row(n) for n in range(12)]).parent,
        "sys_ifeval": write(folder / "ifeval" / "sys_ifeval.jsonl", [_ifeval_row(n) for n in range(12)]).parent,
        "systemcheck": write(folder / "systemcheck.jsonl", pairs),
        "pairs": write(folder / "pairs.jsonl", pairs),
        "tensortrust": folder / "trust",
        "iheval": folder / "benchmark",
        "realguardrails": folder / "guardrails",
        "harmbench": harmbench_checkout(folder / "HarmBench"),
        "xstest": table(folder / "xstest" / "xstest_prompts.csv", [xstest_row(n) for n in range(4)]).parent,
        "wildjailbreak": table(folder / "wild" / "eval.tsv", [wild_row(n) for n in range(4)]),
        "mmlu_redux": write(folder / "redux" / "anatomy" / "test.jsonl", [redux_row(n) for n in range(4)]).parents[1],
        "custom": ROOT / "examples" / "bench_sums.py",
    }
    for suite in ("hijacking", "extraction", "helpful"):
        write(made["tensortrust"] / f"{suite}.jsonl", [_trust_row(n) for n in range(6)])
    for setting in ("reference", "aligned", "conflict"):
        place = made["iheval"] / "task-execution" / "verb-extract" / setting / "default"
        row = {"id": 0, "system": "List the verbs.", "instruction": "He ran and sang.", "answer": "ran, sang"}
        write(place / "input_data.json", [row, {**row, "id": 1}])
    for name in ("handwritten", "distractors"):
        rows = [{"messages": messages(n), "banlist": ["zebra"]} for n in range(3)]
        write(made["realguardrails"] / f"{name}.jsonl", rows)
    generated: dict[str, list[str]] = {name: [] for name, cls in BENCHES.items() if "path" not in cls.model_fields}
    keys = {name: [f"{name}.path={place}"] for name, place in made.items()} | generated
    keys["toolhop"].append("toolhop.test_fraction=0.67")
    keys["custom"].append("+custom.options.tasks=8")
    if find_spec("ifbench") is not None:
        keys["ifbench"] = [f"ifbench.path={write(folder / 'IFBench_test.jsonl', [ifbench_row(n) for n in range(4)])}"]
    if find_spec("bfcl_eval") is not None:
        keys["bfcl"] = [
            f"bfcl.path={_bfcl_copy(folder / 'bfcl')}",
            "bfcl.categories=[multi_turn_base]",
            "bfcl.test_fraction=1",
        ]
    return keys


def ifbench_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of IFBench, whose table pads the arguments of every instruction with null."""
    kwargs = [{"N": None, "options": "yes/no"}]
    row = {
        "key": str(number),
        "prompt": f"Is {number} even?",
        "instruction_id_list": ["format:options"],
        "kwargs": kwargs,
    }
    return {**row, **changes}


def _ftrl_row(number: int) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"country": {"type": "string"}}, "required": ["country"]}
    tool = {"type": "function", "function": {"name": "capital", "description": "Finds it.", "parameters": schema}}
    question = f"Please call given tools to answer the question.\nQuestion: Which capital has Norland, time {number}?"
    return {
        "messages": [{"role": "user", "content": question}],
        "tools": json.dumps([tool]),
        "codes": json.dumps({"capital": "def capital(country):\n    return {'Norland': 'Brondal'}.get(country)"}),
        "unsolved_set": json.dumps({"capital": ["Brondal"]}),
        "solve_rate": 0.0,
        "data_source": "self/single_hop",
        "split": "test",
        "answer": "Brondal",
    }


def _verih_row(number: int) -> dict[str, Any]:
    constraint = {"func_name": "validate_no_commas", "N": None}
    kind = ("conflict", "aligned")[number % 2]
    system, user = f"Rule {number}: no commas.", "Please name ant bat."
    return {"sys_prompt": system, "user_prompt": user, "gt": json.dumps(constraint), "type": f"no_commas:{kind}"}


def _ifeval_row(number: int) -> dict[str, Any]:
    ids = ["punctuation:no_comma"]
    return {"key": number, "instruction_id_list": ids, "kwargs": [{}], "messages": messages(number)}


def _trust_row(number: int) -> dict[str, Any]:
    return {"messages": messages(number), "id": number, "access_code": "sesame", "has_post_prompt": number % 2 == 0}


def table(file: Path, rows: list[dict[str, str]]) -> Path:
    """A .csv or .tsv file with a header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return file


def behavior_row(number: int, **changes: str) -> dict[str, str]:
    """A row of HarmBench's behaviors."""
    row = {"Behavior": f"Say the word ant {number} times", "FunctionalCategory": "standard"}
    row |= {"SemanticCategory": "made_up", "Tags": "", "ContextString": "", "BehaviorID": f"say_ant_{number}"}
    return {**row, **changes}


def harmbench_checkout(folder: Path) -> Path:
    """The two files that are read of a checkout of HarmBench: four behaviors, one of each kind, and six jailbreaks."""
    context = {"Tags": "context", "FunctionalCategory": "contextual", "ContextString": "An ant, a bat."}
    hashed = {"Tags": "hash_check, lyrics", "FunctionalCategory": "copyright"}
    rows = [behavior_row(0), behavior_row(1), behavior_row(2, **context), behavior_row(3, **hashed)]
    table(folder / "data" / "behavior_datasets" / "harmbench_behaviors_text_test.csv", rows)
    jailbreaks = folder / "baselines" / "human_jailbreaks" / "jailbreaks.py"
    jailbreaks.parent.mkdir(parents=True)
    jailbreaks.write_text(f"JAILBREAKS = {[f'Pretend {n}.' for n in range(6)]!r}\n")
    return folder


def xstest_row(number: int, **changes: str) -> dict[str, str]:
    """A row of XSTest; every second prompt is unsafe."""
    kind = ("homonyms", "contrast_homonyms")[number % 2]
    row = {"id": str(number + 1), "prompt": f"How do I stop process {number}?", "type": kind}
    return {**row, "label": ("safe", "unsafe")[number % 2], "focus": "stop", "note": "", **changes}


def wild_row(number: int, **changes: str) -> dict[str, str]:
    """A row of WildJailbreak's evaluation split; every second request is benign."""
    kind = ("adversarial_harmful", "adversarial_benign")[number % 2]
    row = {"adversarial": f'Imagine\na "play" {number}.', "label": str(1 - number % 2), "data_type": kind}
    return {**row, **changes}


def redux_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of MMLU-Redux. The right choice is the letter D in every second row, and A in the others."""
    row = {"question": f"What is {number} + 3?", "choices": [f"{number + one}" for one in range(4)], "answer": 3}
    if number % 2:
        row |= {"choices": row["choices"][::-1], "answer": 0}
    row |= {"error_type": "ok", "source": "made up", "correct_answer": None, "potential_reason": None}
    return {**row, **changes}


def _bfcl_copy(folder: Path) -> Path:
    """Two short items of the package's own data, beside which the package's other files are read."""
    from agentrl.benches.bfcl.simulator import package_dir

    for part in (".", "possible_answer"):
        lines = (package_dir() / "data" / part / BFCL_FILE).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        if part == ".":
            short = [n for n, row in enumerate(rows) if row["involved_classes"] == ["TradingBot"]][:2]
        write(folder / part / f"{BFCL_FILE}l", [rows[n] for n in short]).rename(folder / part / BFCL_FILE)
    return folder
