"""Make a small bench of VerIH's rules that many requests share, and replies to start from.

    python benchmarks/verih_rules.py divide verih/test.json verih_rules
    agentrl eval model=MODEL bench=verih bench.path=verih_rules/train.json bench.test_fraction=1 \
      rollout.max_completion_tokens=96 name=own run_id=replies
    python benchmarks/verih_rules.py mend runs/own/replies verih_rules

`divide` takes the rows of six rules and writes train.json and test.json. Half of the requests of each rule and kind are
for testing; a request is in one file alone. (`bench=verih` itself holds out whole system prompts, so a rule that one
system prompt states would be in one split alone.) `mend` edits the model's own replies until they keep the rule, and
writes traces.jsonl for `algo=sft`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrl.benches.hif.base import SPLITS, Pair
from agentrl.benches.hif.files import rows_of
from agentrl.benches.hif.verih import pair_of
from agentrl.benches.hif.verih_rules import check
from agentrl.config.load import load_config
from agentrl.core.errors import UserError, first_line
from agentrl.core.expert_trace import ExpertTrace
from agentrl.store.run import RunDirectory
from agentrl.traces.files import to_line

Edit = Callable[[str, str, dict[str, Any]], str]  # the reply, the request, the rule's arguments


def sentences(reply: str, count: int = 2) -> str:
    """Return the first sentences of a reply on one line: replies that the token budget cuts cannot keep some rules."""
    return " ".join(re.split(r"(?<=[.!?])\s+", " ".join(reply.split()))[:count])


def with_title(reply: str, request: str, arguments: dict[str, Any]) -> str:
    words = re.findall(r"[A-Za-z]+", request)[:4]
    return f"<<{' '.join(words).title()}>> {reply}"


EDITS: dict[str, Edit] = {  # of the first sentences of a reply
    "title": with_title,
    "no commas": lambda reply, request, arguments: reply.replace(",", ""),
    "all uppercase": lambda reply, request, arguments: reply.upper(),
    "all lowercase": lambda reply, request, arguments: reply.lower(),
    "quotation": lambda reply, request, arguments: '"' + reply.replace('"', "") + '"',
    "postscript": lambda reply, request, arguments: f"{reply}\n\n{arguments['postscript_marker']} I hope this helps.",
}


def divide(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the six rules by split. `type` is the rule and the kind, with a colon between them."""
    strata: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["type"].rpartition(":")[0] in EDITS:
            strata[row["type"]].append(row)
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    home: dict[str, str] = {}
    for stratum in sorted(strata):
        ordered = sorted(strata[stratum], key=lambda row: hashlib.sha256(row["user_prompt"].encode()).hexdigest())
        for place, row in enumerate(ordered):
            splits[home.setdefault(row["user_prompt"], SPLITS[place % 2])].append(row)
    return splits


def mend(rows: list[Pair], replies: dict[int, str]) -> list[ExpertTrace]:
    """Return a trace for each row whose edited reply keeps its rule. `replies` has them by the row's place."""
    traces = []
    for row in rows:
        if row.row not in replies:
            continue
        reply = EDITS[row.data["type"]](sentences(replies[row.row]), row.user, row.data["arguments"])
        if check(reply, row.data["function"], row.data["arguments"], "corrected"):
            traces.append(ExpertTrace(f"verih-train-{row.row}", (), reply, "generated"))
    return traces


def read_replies(run: Path, rows: Path) -> dict[int, str]:
    """Return the replies of a finished evaluation on the file `rows`, by the row's place in that file.

    Raises:
        UserError: `run` is another kind of run, has not finished, or was evaluated on other rows.
    """
    how = "give the directory of a finished agentrl eval with bench=verih"
    if not (run / "status.json").is_file():
        raise UserError(f"{run} is not a run; {how} bench.path={rows}")
    bench, status = load_config(run).bench, RunDirectory(run).status()["status"]
    place = getattr(bench, "path", None)
    if bench.name != "verih" or place is None or Path(place).resolve() != rows.resolve():
        raise UserError(f"{run} has replies to bench={bench.name} bench.path={place}; {how} bench.path={rows}")
    if status != "completed":
        raise UserError(f"{run} is {status}; let it finish (the same command resumes it)")
    lines = (run / "eval" / "after.jsonl").read_text(encoding="utf-8").splitlines()
    episodes = [json.loads(line) for line in lines]
    return {int(one["id"].rpartition("-")[2]): one["messages"][-1]["content"] for one in episodes if "messages" in one}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of VerIH's test.json. Raise UserError if the file is another one."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); give VerIH's test.json") from error
    keys = {"type", "user_prompt"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
        raise UserError(f"{file} is not a list of rows with {' and '.join(sorted(keys))}; give VerIH's test.json")
    if all(row["type"].rpartition(":")[0] in EDITS for row in rows):
        raise UserError(f"{file} has no other rules than the six, so it was divided before; give VerIH's test.json")
    return rows


def write_splits(file: Path, folder: Path) -> None:
    """Write train.json and test.json from VerIH's test.json."""
    splits = divide(read_rows(file))
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
        print(f"{folder / split}.json: {len(rows)} rows", file=sys.stderr)


def make_traces(run: Path, folder: Path) -> None:
    """Write traces.jsonl from the replies of a finished evaluation of train.json."""
    replies = read_replies(run, folder / "train.json")
    rows = [pair_of(row, "train") for row in rows_of(folder / "train.json")]
    traces = mend(rows, replies)
    place = folder / "traces.jsonl"
    place.write_text("".join(to_line(trace) for trace in traces), encoding="utf-8")
    print(f"{place}: {len(traces)} traces of {len(replies)} replies to {len(rows)} rows", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("divide", "mend"))
    parser.add_argument("source", type=Path, help="VerIH's test.json, or the evaluation that has the replies")
    parser.add_argument("folder", type=Path, help="the folder of train.json, test.json and traces.jsonl")
    options = parser.parse_args()
    try:
        {"divide": write_splits, "mend": make_traces}[options.step](options.source, options.folder)
    except UserError as error:
        sys.exit(f"verih_rules.py: error: {error}")


if __name__ == "__main__":
    main()
