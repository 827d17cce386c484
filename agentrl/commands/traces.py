"""`agentrl traces build bench=... out=traces.jsonl`: make expert traces from a bench's data, or with a teacher."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from agentrl.commands.arguments import file_to_write, key_lines, read_flag, read_whole_number, split_keys
from agentrl.config.checks import require
from agentrl.config.compose import compose
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import CHUNK_TYPES, ExpertTrace
from agentrl.core.jsonl import numbered_lines
from agentrl.runner.reach import check_server
from agentrl.store.durable import drop_torn_tail, write_records

KEYS = {
    "out": "File to write, one trace per line. Rejections and a page of examples are written beside it.",
    "source": "mined (from the bench's data; the default) or teacher (rollouts of a stronger model).",
    "split": "Which tasks get a trace: train (the default), test or all.",
    "limit": "The largest number of tasks.",
    "endpoint": "With source=teacher: address of the OpenAI-compatible server.",
    "teacher": "With source=teacher: the model's name there.",
    "tries": "With source=teacher: the most rollouts per task until one is kept (default 4).",
    "annotate": "With source=teacher: true lets the teacher label reasoning that the rules cannot label.",
}
HELP = f"""agentrl traces build bench=NAME [bench.path=FILE] out=FILE [key=value ...]

Makes expert traces for a bench: from the bench's data, or by asking a stronger model.

{key_lines(KEYS)}

A run uses the file with traces=FILE. The same command continues with tasks that have neither trace nor rejection."""


def main(arguments: list[str]) -> int:
    """Build the file; return exit code 1 if no trace was kept. Raise UserError if the keys make no sense."""
    if arguments[:1] != ["build"]:
        raise UserError("say what to do: agentrl traces build bench=NAME [bench.path=FILE] out=FILE")
    own, overrides = split_keys(arguments[1:], KEYS)
    if not own.get("out"):
        raise UserError(f"out=... is missing. {KEYS['out']}")
    source = own.get("source", "mined")
    if source not in ("mined", "teacher"):
        raise UserError(f"source={source} is not a choice; choose mined or teacher")
    if source == "teacher" and not (own.get("endpoint") and own.get("teacher")):
        raise UserError("source=teacher needs two keys; set endpoint=http://... and teacher=<model there>")
    out = file_to_write(own["out"], new=source == "mined")
    config = _configuration(own, overrides)
    config.bench.check_path()
    if source == "teacher":
        rule = f"keeps rollouts that call tools, and bench={config.bench.name} has none; leave out source="
        require(not config.bench.two_sided, "source", source, rule)
        check_server("endpoint", own["endpoint"])
    kept, reasons, coverage = (_mine if source == "mined" else _ask_teacher)(config, own, out)
    if kept:
        from agentrl.traces.page import render_traces

        page = out.with_suffix(".html")
        page.write_text(render_traces(out, reasons, coverage), encoding="utf-8")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    total = kept + sum(reasons.values())
    console.print(
        f"{kept} traces of {total} tasks in {out}" + (f"; {out.with_suffix('.html')} shows them" if kept else "")
    )
    for reason, count in reasons.most_common():
        console.print(f"  {count} rejected: {reason}")
    for name, value in coverage.items():
        console.print(f"  {name}: {value}")
    return int(kept == 0)


def _configuration(own: dict[str, str], overrides: list[str]) -> Config:
    chosen = list(overrides)
    if own.get("source") == "teacher":
        if any(override.startswith("model=") for override in overrides):
            raise UserError("source=teacher asks teacher=<model there>; leave out model=...")
        chosen += ["algo=eval", f"algo.endpoint.base_url={own['endpoint']}", "model=custom", "model.name=teacher"]
        chosen += [f"model.path={own['teacher']}"]
    return compose(chosen)


def _tasks(bench: Any, own: dict[str, str], seed: int) -> list[Any]:
    split = own.get("split", "train")
    if split not in ("train", "test", "all"):
        raise UserError(f"split={split} is not a choice; choose train, test or all")
    tasks = [task for one in (("train", "test") if split == "all" else (split,)) for task in bench.tasks(one)]
    return tasks[: read_whole_number(own, "limit", max(len(tasks), 1))]


def _mine(config: Config, own: dict[str, str], out: Path) -> tuple[int, Counter[str], dict[str, Any]]:
    from agentrl.benches import load_bench
    from agentrl.mining.mine import Mining
    from agentrl.traces.files import to_line

    bench = load_bench(config.bench, config.sandbox)
    kept, reasons = [], Counter[str]()
    for task in _tasks(bench, own, config.seed):
        trace = bench.expert_trace(task)
        if trace is not None:
            kept.append(to_line(trace))
            continue
        outcome = bench.mine(task) if isinstance(bench, Mining) else None
        reasons[getattr(outcome, "reason", "the bench has no trace for it")] += 1
    if kept:
        out.write_text("".join(kept), encoding="utf-8")
    coverage = bench.miner.coverage.summary() if isinstance(bench, Mining) else {}
    coverage.pop("reasons", None)
    return len(kept), reasons, coverage


def _ask_teacher(config: Config, own: dict[str, str], out: Path) -> tuple[int, Counter[str], dict[str, Any]]:
    """Play rollouts in batches; a trace or a rejection is written as soon as it is known.

    If the teacher's server did not play a task, its line says that the task is missing, and the next command tries it
    again.
    """
    from agentrl.benches import load_bench
    from agentrl.rollout.endpoint import EndpointEngine
    from agentrl.traces.files import to_line
    from agentrl.traces.teacher import build_annotator, make_traces

    tries = read_whole_number(own, "tries", 4)
    rejected = out.with_suffix(".rejected.jsonl")
    if out.exists():
        drop_torn_tail(out)
    if rejected.exists():
        drop_torn_tail(rejected)
        write_records(rejected, [record for record in _lines(rejected) if "missing" not in record])
    bench = load_bench(config.bench, config.sandbox)
    engine = EndpointEngine(config)
    annotate = build_annotator(engine.ask, CHUNK_TYPES) if read_flag(own, "annotate") else None
    settled = {record["task_id"] for file in (out, rejected) for record in _lines(file)}
    todo = [task for task in _tasks(bench, own, config.seed) if task.id not in settled]
    with out.open("a", encoding="utf-8") as traces, rejected.open("a", encoding="utf-8") as rejections:
        for start in range(0, len(todo), config.eval.batch):
            batch = todo[start : start + config.eval.batch]
            for outcome in make_traces(engine, bench, batch, tries, annotate):
                if isinstance(outcome, ExpertTrace):
                    traces.write(to_line(outcome))
                    traces.flush()
                else:
                    rejections.write(json.dumps(outcome) + "\n")
                    rejections.flush()
    reasons = Counter(record["reasons"][-1] for record in _lines(rejected) if "reasons" in record)
    missing = Counter(record["missing"] for record in _lines(rejected) if "missing" in record)
    kept = sum(1 for _ in _lines(out))
    if not missing:
        return kept, reasons, {}
    told = "; ".join(f"{count} times: {reason}" for reason, count in missing.most_common(3))
    if not kept and not reasons:
        raise UserError(f"no trace was made: the server played no task ({told}); the same command tries them again")
    return kept, reasons, {"missing": f"{missing.total()} more tasks, which the same command tries again ({told})"}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file; none if it does not exist."""
    if file.exists():
        for _, line in numbered_lines(file.read_text(encoding="utf-8")):
            yield json.loads(line)
