"""Quotes what a person types for Hydra: values with blanks, brackets, '=', '~', quotes or unusual letters.

Hydra's grammar allows few characters without quotes, and its quotes must be quoted again for the shell. Users should
not have to know this.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from agentrl.config.checks import expand_home
from agentrl.config.key import type_name
from agentrl.config.load import all_keys
from agentrl.config.meanings import guess_meaning, suggest_key
from agentrl.config.places import place_names
from agentrl.core.errors import UserError

OVERRIDE = re.compile(r"(?P<key>\+{0,2}[A-Za-z_][\w./@-]*)=(?P<value>.*)", re.DOTALL)
# Text that Hydra reads unchanged. Hydra and the type of the key decide about numbers.
PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./:+@%-]*|[0-9]+|", re.ASCII)
SWEEPS = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)


FLAGS = {  # Hydra's flags -> whether a value follows
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"), True),
    **dict.fromkeys(("-cd", "--config-dir", "--experimental-rerun"), True),
    **dict.fromkeys(("-h", "--help", "--hydra-help", "-hh", "--version", "-r", "--resolve", "--run", "-m"), False),
    **dict.fromkeys(("--multirun", "-sc", "--shell-completion", "-i", "--info"), False),
}


def put_flags_first(arguments: list[str]) -> list[str]:
    """Put flags before overrides, because Hydra does not allow a flag between two overrides.

    Raises UserError for an unknown flag, which may be a key written with dashes.
    """
    flags, overrides, waiting = list[str](), list[str](), list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if argument.startswith("-") and name in FLAGS:
            flags.append(argument)
            if FLAGS[name] and not equals:
                flags += waiting[:1]
                del waiting[:1]
        elif argument.startswith("-"):
            following = waiting[0] if waiting and not equals and not waiting[0].startswith("-") else "..."
            raise UserError(_explain_flag(name, value if equals else following))
        else:
            overrides.append(argument)
    return flags + overrides


def _explain_flag(name: str, value: str) -> str:
    word = name.lstrip("-").replace("-", "_")
    known = {key for key, _, _ in all_keys()} | {"algo", "model", "bench", "hardware", "sweep", "experiment", "reward"}
    meant = word if word in known else guess_meaning(word)
    if meant is None and (flag := difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.8)):
        return f"{name} is not a flag; did you mean {flag[0]}?"
    if meant is None:
        near = suggest_key(word, sorted(known))
        return f"{name} is not a flag{near}; keys are written without dashes: key=value"
    example = meant if "=" in meant or " " in meant else f"{meant}={value}"
    return f"{name} is not a flag; keys are written without dashes: {example}"


def is_sweep(arguments: list[str]) -> bool:
    """Whether the command line describes several runs. A comma then separates values."""
    chosen = any(text.startswith("sweep=") and text != "sweep=null" for text in arguments)
    return chosen or bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))


def quote_override(override: str, sweep: bool) -> str:
    """Quote the value of an override if Hydra would otherwise read another text."""
    found = OVERRIDE.fullmatch(override)
    if found is None or found["key"].startswith("hydra"):
        return override
    key, value = found["key"], found["value"]
    kind = _kinds().get(key.lstrip("+"))
    if value in ("null", "???") or "${" in value or SWEEPS.fullmatch(value) or _is_quoted(value):
        return override
    if kind != "str" and (value[:1] in ("[", "{") or re.fullmatch(r"[\w.,:+*() -]*", value, re.ASCII)):
        return override  # a number, a list or a mapping: Hydra reads them, and the type is checked later
    place = place_names().get(key.rsplit(".", 1)[-1])
    if place and value.startswith("~") and "," not in value:
        value = expand_home(value)
    if "," not in value or place == "written":
        return f"{key}={_quote(value)}"
    parts = split_names(value)
    if sweep:
        return f"{key}={','.join(map(_quote, parts))}"
    meant_as_sweep = not place or (len(parts) > 1 and all(Path(expand_home(part)).exists() for part in parts))
    return override if meant_as_sweep else f"{key}={_quote(value)}"


def split_names(value: str) -> list[str]:
    """Split names at commas, except at a comma inside a path that exists."""
    parts, names = value.split(","), []
    while parts:
        joined = [n for n in range(len(parts), 1, -1) if Path(expand_home(",".join(parts[:n]))).exists()]
        count = joined[0] if joined else 1
        names.append(",".join(parts[:count]))
        parts = parts[count:]
    return [name for name in names if name]


def restore_typed_names(message: str, names: Mapping[str, str]) -> str:
    """Rewrite a message with the keys as the person typed them.

    `names` maps a real key, or the start of one that ends in '.', to the typed key.
    """
    for real, typed in names.items():
        end = r"(?=\w)" if real.endswith(".") else r"(?![\w.]\w)"
        message = re.sub(rf"(?<![\w./-]){re.escape(real)}{end}", typed.replace("\\", r"\\"), message)
    return message


def config_folders(arguments: list[str]) -> list[Path]:
    """List the directories of --config-dir, in the order given."""
    return [Path(expand_home(folder)) for _, _, folder in _folders_at(arguments)]


def without_folders(arguments: list[str]) -> list[str]:
    """Return the arguments without --config-dir and its value."""
    taken = {place for start, end, _ in _folders_at(arguments) for place in range(start, end)}
    return [argument for position, argument in enumerate(arguments) if position not in taken]


def _folders_at(arguments: list[str]) -> Iterator[tuple[int, int, str]]:
    for position, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd"):
            yield position, position + 2, "".join(arguments[position + 1 : position + 2])
        elif argument.startswith("--config-dir="):
            yield position, position + 1, argument.partition("=")[2]


@cache
def _kinds() -> dict[str, str]:
    """Map every key to the name of its type. If two benches declare a key with different types, `str` wins."""
    found: dict[str, str] = {}
    for key, kind, _ in all_keys():
        name = type_name(kind).removesuffix(" or null")
        if found.get(key) != "str":
            found[key] = name
    return found


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _quote(value: str) -> str:
    """Put `value` in Hydra's single quotes if it needs quotes."""
    if PLAIN.fullmatch(value) or _is_quoted(value):
        return value
    escaped = re.sub(r"(\\*)(['\"]?)", lambda found: _escape(found[1], found[2], found.end() == len(value)), value)
    return f"'{escaped}'"


def _escape(backslashes: str, quote: str, at_end: bool) -> str:
    """Escape a quote and the backslashes before it. Elsewhere backslashes mean nothing to Hydra."""
    if quote == "'":
        return f"{2 * backslashes}\\'"
    return 2 * backslashes if at_end and not quote else backslashes + quote


def escape_interpolation(text: Any) -> Any:
    """Escape a value so that OmegaConf keeps it: `${` in a path is not an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text) if isinstance(text, str) else text
