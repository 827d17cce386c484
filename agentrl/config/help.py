"""Help and reference made from what exists: the groups from the files of conf/, the keys from the schema."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import yaml

from agentrl.config.load import all_keys, type_name
from agentrl.config.schema import Config

GROUPS = {
    "algo": "how to train",
    "model": "what to train",
    "model/lora": "train adapters instead of all weights",
    "bench": "tasks, tools and scoring",
    "hardware": "where it runs",
    "anneal": "shape of PACT's tool-call scale",
    "reward": "what an episode earns",
    "dual": "how HIPO's multipliers move",
    "judge": "who grades a response where no program can",
    "tracker": "live tracking, beside the files of the run directory",
    "experiment": "settings that belong together",
    "sweep": "several runs, one after the other",
}
EXAMPLES = {
    "agentrl": "PACT on minihop with the tiny model: a first run, on a CPU",
    "agentrl dry_run=true algo=pact model=qwen3-4b bench=toolhop hardware=gpu": "check and estimate, train nothing",
    "agentrl model=qwen2.5-0.5b model/lora=on bench=toolhop bench.path=ToolHop.json": "adapters, data from a file",
    "agentrl algo=hipo algo.tau=0.8": "HIPO on minihif: serve the user, and the system prompt at least to 0.8",
    "agentrl eval model=qwen3-1.7b,runs/NAME/ID bench=minihop samples=4 temperature=1": "compare without training",
    "agentrl model=custom model.path=./checkpoint model.family=qwen2.5": "any checkpoint",
    "agentrl seed=1 trainer.max_steps=100 trainer.learning_rate=1e-4": "change single keys",
    "agentrl -m seed=0,1,2 algo=grpo,pact": "every combination; 'agentrl sweep=seeds' has one ready",
    "agentrl --config-dir ./mine bench=mine": "your own files beside the packaged groups",
    "agentrl --cfg job algo=sft": "show the values, start nothing",
    'eval "$(agentrl -sc install=bash)"': "tab completion for this shell",
}


def help_text(conf: Path, commands: Iterable[str]) -> str:
    """What `agentrl --help` prints; `commands` are the verbs, each a module of agentrl/commands/."""
    lines = ["agentrl [group=option ...] [key=value ...]", "agentrl COMMAND [key=value ...]", ""]
    lines += ["Trains a language-model agent and evaluates it before and after. The same command again resumes.", ""]
    lines += ["Commands (agentrl COMMAND --help says more):"]
    for name in commands:
        usage, purpose = usage_of(name)
        lines += [f"  {name:<11} {purpose}", f"              {usage}"]
    lines += ["", "Groups (first the default):"]
    for group, purpose in GROUPS.items():
        lines += [f"  {group:<11} {purpose}", f"              {', '.join(options(conf, group))}"]
    lines += ["", "Examples:"]
    for command, purpose in EXAMPLES.items():
        lines += [f"  {command}", f"              {purpose}"]
    lines += [
        "",
        "Flags: -m (sweep), --cfg job, --config-dir DIR, -sc install=SHELL, --version, --hydra-help",
        "",
        "Keys:",
    ]
    for key, kind, doc in _unique_keys():
        lines.append(f"  {key} ({kind})\n              {doc}")
    lines += ["", "Quote lists: 'bench.train_hops=[1,0,0,0]'. Results: runs/<name>/<id>/ (runs_dir, name, run_id)."]
    return "\n".join(lines)


def usage_of(command: str) -> tuple[str, str]:
    """How a command is written and what it does, from its module's docstring, which is read and not imported."""
    source = (Path(__file__).resolve().parent.parent / "commands" / f"{command}.py").read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    usage, _, purpose = first.replace("`", "").partition(": ")
    return usage, purpose


def options(conf: Path, group: str) -> list[str]:
    """Options of a group by file name, the default first."""
    found = sorted(file.stem for file in (conf / group).glob("*.yaml"))
    primary = yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {key: value for entry in primary if isinstance(entry, dict) for key, value in entry.items()}
    return sorted(found, key=lambda option: option != chosen.get(group, "off"))


def reference() -> str:
    """docs/config.md: every key, its type and its sentence."""
    sections = {"": "Run"} | {item.name: item.metadata["doc"] for item in fields(Config)}
    lines = [
        "# Configuration keys",
        "",
        "Made from the dataclasses of `agentrl/config/` by `python -m agentrl.config.help`; do not edit.",
        "Values are in `conf/`; `agentrl --cfg job` shows those of a run.",
    ]
    current = None
    for key, kind, doc in _unique_keys():
        section = key.split(".")[0] if "." in key else ""
        if section != current:
            current = section
            title = f"`{section}`: {sections[section]}" if section else sections[section]
            lines += ["", f"## {title}", "", "| key | type | meaning |", "|---|---|---|"]
        lines.append(f"| `{key}` | {kind} | {doc.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _unique_keys() -> Iterator[tuple[str, str, str]]:
    """Every key once: variants of algo and bench share some, with one meaning in the help (the first)."""
    seen: set[str] = set()
    for key, kind, doc in all_keys():
        if key not in seen:
            seen.add(key)
            yield key, type_name(kind), doc


if __name__ == "__main__":
    print(reference(), end="")
