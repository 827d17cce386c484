"""Makes the help and the reference: the groups from the files of conf/, the keys from their classes."""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.config.algos.table import ALGOS
from agentrl.config.defaults import chosen_options, default_of, format_typed, keys
from agentrl.config.load import operational_keys
from agentrl.config.refusals import unknown_option
from agentrl.config.schema import VARIANTS, Config
from agentrl.config.shipped import option_files, sentence_of
from agentrl.config.typed import config_folders
from agentrl.core.errors import UserError

GROUPS = {
    "algo": "how to train",
    "model": "what to train",
    "model/lora": "train adapters instead of all weights",
    "bench": "tasks, tools and scoring",
    "hardware": "where the run computes",
    "anneal": "how PACT's weight of tool calls changes",
    "reward": "what an episode earns",
    "dual": "how HIPO's multipliers are updated",
    "judge": "who grades a response that no program can grade",
    "tracker": "live tracking, besides the files of the run directory",
    "experiment": "settings that belong together",
    "sweep": "several runs, one after the other",
}
EXAMPLES = {
    "agentrl": "PACT on minihop with the tiny model: a first run, on a CPU",
    "agentrl dry_run=true algo=pact model=qwen3-4b bench=toolhop hardware=gpu": "check and estimate, train nothing",
    "agentrl model=qwen2.5-0.5b model/lora=on bench=toolhop bench.path=ToolHop.json": "adapters, data from a file",
    "agentrl algo=hipo algo.tau=0.8": "HIPO on minihif: serve the user, and keep the system reward at 0.8 or more",
    "agentrl eval model=qwen3-1.7b,runs/NAME/ID bench=minihop samples=4 temperature=1": "compare without training",
    "agentrl model=someone/model bench=minihop": "any hub id; model=./checkpoint and model=runs/NAME/ID likewise",
    "agentrl seed=1 trainer.max_steps=100 trainer.learning_rate=1e-4": "change single keys",
    "agentrl -m seed=0,1,2 algo=grpo,pact": "every combination; 'agentrl sweep=seeds' has one ready",
    "agentrl --config-dir ./mine bench=mine": "your own files besides the packaged ones",
    "agentrl --cfg job algo=sft": "show the values, start nothing",
    'eval "$(agentrl -sc install=bash)"': "tab completion for this shell",
}


USED = {section for method in ALGOS.values() for section in method.reads}  # sections that only some methods read
TITLES = {"": "Run"} | {name: str(item.description) for name, item in Config.model_fields.items()}
WIDTH = 120  # width of lines if there is no terminal


def help_text(conf: Path, commands: Iterable[str], values: Mapping[str, Any], typed: list[str]) -> str:
    """Make the text of `agentrl [group=option ...] --help`: the keys of the chosen groups with their `values`.

    `commands` are the verbs, each a module of agentrl/commands/. `typed` are the arguments before --help. Raises
    UserError if a group has an unknown name.
    """
    for group, known in VARIANTS.items():
        if (name := _name(values, group)) not in known:
            raise UserError(unknown_option(group, name, list(known)))
    lines = [*_usage(), "Commands (agentrl COMMAND --help says more):"]
    lines += [f"  {name:<11} {usage_of(name)[1]}" for name in commands]
    lines += ["", "Groups, first the default:"]
    for group, purpose in GROUPS.items():
        lines += _entry(f"{group:<11}", f"{purpose}: {', '.join(options(conf, group, config_folders(typed)))}", 14)
    lines += ["", *FLAGS, ""]
    choice = " ".join(f"{group}={_name(values, group)}" for group in ("algo", "model", "bench", "hardware"))
    lines += [f"Keys of {choice}, with their values (agentrl algo=hipo --help: those of another choice):"]
    for section in sections():
        used = section not in USED or section in ALGOS[_name(values, "algo")].reads
        if used or any(text.startswith(section) for text in typed):
            lines += _section(section, values)
    lines += ["", *_examples(), ""]
    lines += ["agentrl --help all: every key of every option, with types, owners and defaults."]
    return "\n".join(lines)


def help_all(conf: Path, commands: Iterable[str]) -> str:
    """Make the text of `agentrl --help all`."""
    lines = [*_usage(), "Commands (agentrl COMMAND --help says more):"]
    for name in commands:
        usage, purpose = usage_of(name)
        lines += [f"  {name:<11} {purpose}", f"              {usage}"]
    lines += ["", "Groups (first the default):"]
    for group, purpose in GROUPS.items():
        lines += [f"  {group:<11} {purpose}", f"              {', '.join(options(conf, group))}"]
        lines += [f"                {name:<15} {sentence}" for name, sentence in describe_options(group)]
    lines += ["", *_examples(), "", *FLAGS, "", "Keys (type; the options that have it; default):"]
    for key in keys():
        owners = f"; {', '.join(key.owners)}" if key.owners else ""
        lines += [f"  {key.name} ({key.kind}{owners}; {default_of(key)})", f"              {key.doc}"]
    lines += ["", "Quote lists: 'bench.train_hops=[1,0,0,0]'. Results: runs/<name>/<id>/ (runs_dir, name, run_id)."]
    return "\n".join(lines)


FLAGS = [
    "Flags: -m (sweep), --cfg job (show all values), --config-dir DIR (your own files), -sc install=SHELL, --version,",
    "       --hydra-help",
]


def _examples() -> list[str]:
    """Commands to begin with, each above a sentence that says what it does."""
    return ["Examples:", *(line for pair in EXAMPLES.items() for line in (f"  {pair[0]}", f"              {pair[1]}"))]


def _usage() -> list[str]:
    return [
        "agentrl [group=option ...] [key=value ...]",
        "agentrl COMMAND [key=value ...]",
        "",
        "Trains a language-model agent and evaluates it before and after. The same command again resumes.",
        "",
    ]


def sections() -> list[str]:
    """List the groups of keys in the order of the schema. The keys of the run itself ("") come first."""
    return list(dict.fromkeys(["", *(key.section for key in keys())]))


def _section(section: str, values: Mapping[str, Any]) -> list[str]:
    """List the keys of one group that the chosen option has, each with its value."""
    name = _name(values, section) if section in VARIANTS else None
    title = TITLES[section]
    chosen = _name(values, section)
    lines = ["", f"{section}={chosen}: {title}" if chosen else f"{section}: {title}" if section else title]
    for key in keys():
        other = name is not None and key.owners and name not in key.owners
        if key.section != section or other or ".N." in key.name or (chosen and key.name == f"{section}.name"):
            continue
        value: Any = values
        for part in key.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        missing = value == "???"
        doc = f"Must be given. {key.doc}" if missing else key.doc
        lines += _entry(f"{key.name}={'...' if missing else format_typed(value)}", doc, 42)
    return lines if len(lines) > 2 else []


def _name(values: Mapping[str, Any], group: str) -> str:
    content = values.get(group)
    return str(content.get("name", "")) if group and isinstance(content, Mapping) else ""


def _entry(head: str, text: str, indent: int) -> list[str]:
    """Put a text beside `head`, or below it if `head` is long. Long texts are folded, never cut."""
    width = max(shutil.get_terminal_size((WIDTH, 24)).columns, indent + 30)
    folded = textwrap.wrap(text, width - indent, break_long_words=False, break_on_hyphens=False)
    first = f"  {head}".ljust(indent)
    if len(first) > indent:
        return [f"  {head}", *(" " * indent + line for line in folded)]
    return [f"{first}{folded[0]}", *(" " * indent + line for line in folded[1:])]


def usage_of(command: str) -> tuple[str, str]:
    """Return how a command is written and what it does, from its module's docstring. The module is not imported."""
    source = (Path(__file__).resolve().parent.parent / "commands" / f"{command}.py").read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    usage, _, purpose = first.replace("`", "").partition(": ")
    return usage, purpose


def options(conf: Path, group: str, folders: Sequence[Path] = ()) -> list[str]:
    """List the options of a group by file name, the default first. `folders` hold the user's own files."""
    found = sorted({file.stem for folder in (conf, *folders) for file in (folder / group).glob("*.yaml")})
    default = dict(chosen_options()).get(group, "off")
    return sorted(found, key=lambda option: option != default)


def describe_options(group: str) -> list[tuple[str, str]]:
    """List the methods or benches with a sentence on each, in the order of registration; empty for other groups."""
    files = option_files(group) if group in ("algo", "bench") else {}
    return [(name, sentence_of(files[name])) for name in VARIANTS.get(group, ()) if name in files]


def reference() -> str:
    """Make docs/config.md: every key with its options, type, default and sentence."""
    lines = [
        "# Configuration keys",
        "",
        "Made from `agentrl/config/` and `conf/` by `python -m agentrl.config.help`; do not edit.",
        "`agentrl algo=... --help` shows the keys of a choice with their values, `agentrl --cfg job` all values.",
        "Each row has the default first, then the defaults that options bring. It leaves out the values that",
        "`conf/preset/` and `conf/limits/` scale down for a small model. A run resumes with another value of a key",
        "that *changes no result*. Another value of any other key makes another run.",
    ]
    operational = set(operational_keys())
    for section in sections():
        owned = section in VARIANTS
        said = [f"| `{name}` | {sentence} |" for name, sentence in describe_options(section)]
        title = f"`{section}`: {TITLES[section]}" if section else TITLES[section]
        head = ["key", *(["of"] if owned else []), "type", "default", "meaning"]
        lines += ["", f"## {title}", ""]
        lines += [f"| `{section}=` | what it is |", "|---|---|", *said, ""] if said else []
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for key in keys():
            if key.section == section:
                owners = [", ".join(key.owners) or "all"] if owned else []
                default = "" if ".N." in key.name else default_of(key)
                mark = " *Changes no result.*" if {key.name, key.section} & operational else ""
                row = [f"`{key.name}`", *owners, key.kind, default, key.doc + mark]
                lines.append("| " + " | ".join(cell.replace("|", chr(92) + "|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
