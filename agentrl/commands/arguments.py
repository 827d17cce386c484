"""What the commands share: their `key=value` arguments, and the lines of `--help` about them. No Hydra here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from agentrl.config.checks import require
from agentrl.config.meanings import suggest
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory

SHOWN = 3  # runs named where a directory of many is given
FOLDER = ("--config-dir", "-cd")  # Hydra's flag, whose value follows


def key_lines(keys: Mapping[str, str]) -> str:
    """The part of a command's help that lists its keys, a sentence each."""
    width = max(map(len, keys))
    return "\n".join(f"  {key:<{width}}  {sentence}" for key, sentence in keys.items())


def command_keys(arguments: list[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Divide a command's `key=value` arguments into its own keys (those in `known`) and overrides of the configuration.

    `known` maps each of the command's keys to its sentence. Raises UserError for an argument without '=' that is no
    flag of `compose`, and for a key given twice.
    """
    own: dict[str, str] = {}
    rest: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in known and equals:
            if name in own:
                raise UserError(f"{name} is given twice; keep one of them")
            own[name] = value
        elif equals or argument in FOLDER or (position and arguments[position - 1] in FOLDER):
            rest.append(argument)
        elif (word := name.lstrip("-")) in known and word != name:
            raise UserError(f"{name} is no flag; keys are written without dashes: {word}=...")
        else:
            instead = suggest(name, list(known)) if known else "; agentrl --help lists the keys of a run"
            raise UserError(f"'{argument}' is not key=value{instead}")
    return own, rest


def places_and_keys(arguments: list[str], known: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Divide the arguments of a command that composes nothing: names of files or runs, and its own keys.

    Raises UserError for a key that is not among `known` or given twice.
    """
    places = [argument for argument in arguments if _is_place(argument, known)]
    own, unknown = command_keys([argument for argument in arguments if argument not in places], known)
    if unknown:
        name = unknown[0].partition("=")[0]
        raise UserError(f"this command has no key {name}{suggest(name, list(known))}")
    return places, own


def _is_place(argument: str, known: Mapping[str, str]) -> bool:
    """Whether an argument names a place rather than a key: a path, too, may hold '='."""
    name, equals, _ = argument.partition("=")
    if argument.startswith("--") or (equals and name in known):
        return False
    return not equals or "/" in name or Path(argument).expanduser().exists()


def flag(own: Mapping[str, str], name: str, default: bool = False) -> bool:
    """The value of a key that is true or false. Raises UserError for anything else."""
    value = own.get(name, str(default).lower())
    require(value in ("true", "false"), name, value, "must be true or false")
    return value == "true"


def read_whole_number(own: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """The value of a key that is a whole number of at least `least`. Raises UserError for anything else."""
    value = own.get(name, str(default))
    good = value.isascii() and value.isdigit() and int(value) >= least
    require(good, name, value, f"must be a whole number of at least {least}")
    return int(value)


def file_to_write(path: str, new: bool = False) -> Path:
    """The file that `out=` names, checked before the work that fills it.

    Raises UserError where its directory is not there or not writable, or with `new` where the file exists already.
    """
    file = Path(path).expanduser()
    folder = file.absolute().parent
    require(folder.is_dir() and os.access(folder, os.W_OK), "out", path, "its directory must exist and be writable")
    require(not file.is_dir(), "out", path, "is a directory; name a file")
    require(not (new and file.exists()), "out", path, "exists already; name another file, or remove it")
    return file


def say(text: str) -> None:
    """What a command that takes seconds is doing, on stderr: stdout is for its result."""
    print(f"agentrl: {text}", file=sys.stderr, flush=True)


def run_at(place: str) -> RunDirectory:
    """The run directory that an argument names. Raises UserError where it is none, or is damaged."""
    run = RunDirectory(Path(place).expanduser())
    if not run.status_path.is_file():
        if latest := _latest_runs(run.path):
            raise UserError(
                f"{place} is no run directory but holds runs: name one, the latest are {', '.join(latest)} "
                f"(agentrl ls {place} lists them)"
            )
        raise UserError(f"{place} is no run directory (no status.json); a run names its own in its first and last line")
    run.status()
    return run


def _latest_runs(folder: Path) -> list[str]:
    """The runs at most three levels below a folder whose status changed last, the newest first."""
    found = [file for depth in range(1, 4) for file in folder.glob("/".join(["*"] * depth) + "/status.json")]
    return [str(file.parent) for file in sorted(found, key=_age)[:SHOWN]]


def _age(file: Path) -> float:
    return -file.stat().st_mtime
