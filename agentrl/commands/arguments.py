"""Read the `key=value` arguments that the commands share, and write their `--help`. This module uses no Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from agentrl.config.checks import require
from agentrl.config.meanings import suggest
from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory

SHOWN = 3  # number of runs named when a directory holds many
FOLDER = ("--config-dir", "-cd")  # Hydra's flag, whose value follows


def key_lines(keys: Mapping[str, str]) -> str:
    """Return the part of a command's help that lists its keys, with one sentence each."""
    width = max(map(len, keys))
    return "\n".join(f"  {key:<{width}}  {sentence}" for key, sentence in keys.items())


def split_keys(arguments: list[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Divide a command's `key=value` arguments into its own keys (those in `known`) and overrides of the configuration.

    `known` maps each of the command's keys to its sentence. Raises UserError if an argument has no '=' and is not a
    flag of `compose`, or if a key is given twice.
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
            raise UserError(f"{name} is not a flag; write keys without dashes: {word}=...")
        else:
            instead = suggest(name, list(known)) if known else "; agentrl --help lists the keys of a run"
            raise UserError(f"'{argument}' is not key=value{instead}")
    return own, rest


def split_places(arguments: list[str], known: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Divide the arguments of a command without a configuration: names of files or runs, and its own keys.

    Raises UserError if a key is not in `known` or is given twice.
    """
    places = [argument for argument in arguments if _is_place(argument, known)]
    own, unknown = split_keys([argument for argument in arguments if argument not in places], known)
    if unknown:
        name = unknown[0].partition("=")[0]
        raise UserError(f"this command has no key {name}{suggest(name, list(known))}")
    return places, own


def _is_place(argument: str, known: Mapping[str, str]) -> bool:
    """Check whether an argument names a place and not a key: a path may hold '=' too."""
    name, equals, _ = argument.partition("=")
    if argument.startswith("--") or (equals and name in known):
        return False
    return not equals or "/" in name or Path(argument).expanduser().exists()


def read_flag(own: Mapping[str, str], name: str, default: bool = False) -> bool:
    """Return the value of a key that is true or false. Raise UserError for anything else."""
    value = own.get(name, str(default).lower())
    require(value in ("true", "false"), name, value, "must be true or false")
    return value == "true"


def read_whole_number(own: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """Return the value of a key that is a whole number of at least `least`. Raise UserError for anything else."""
    value = own.get(name, str(default))
    good = value.isascii() and value.isdigit() and int(value) >= least
    require(good, name, value, f"must be a whole number of at least {least}")
    return int(value)


def file_to_write(path: str, new: bool = False, kinds: tuple[str, ...] = ()) -> Path:
    """Return the file that `out=` names, checked before the work begins.

    Raises UserError if its directory does not exist or is not writable, if its name ends in none of `kinds`, or, with
    `new`, if the file exists.
    """
    file = Path(path).expanduser()
    ending = f"must end in {', '.join(kinds[:-1])} or {kinds[-1]}" if kinds else ""
    require(not kinds or file.suffix in kinds, "out", path, ending)
    folder = file.absolute().parent
    require(folder.is_dir() and os.access(folder, os.W_OK), "out", path, "its directory must exist and be writable")
    require(not file.is_dir(), "out", path, "is a directory; name a file")
    require(not (new and file.exists()), "out", path, "exists already; name another file, or remove it")
    return file


def say(text: str) -> None:
    """Say on stderr what a slow command is doing; stdout is for its result."""
    print(f"agentrl: {text}", file=sys.stderr, flush=True)


def open_run(place: str) -> RunDirectory:
    """Return the run directory that an argument names. Raise UserError if it is not one, or is damaged."""
    run = RunDirectory(Path(place).expanduser())
    if not run.status_path.is_file():
        if latest := _latest_runs(run.path):
            raise UserError(
                f"{place} is not a run directory but holds some; name one, e.g. the latest: {', '.join(latest)} "
                f"(agentrl ls {place} lists them)"
            )
        raise UserError(
            f"{place} is not a run directory (no status.json); a run prints its own in its first and last line"
        )
    run.status()
    return run


def _latest_runs(folder: Path) -> list[str]:
    """Return the runs at most three levels below a folder whose status changed last, the newest first."""
    # [!.]: a directory that another command is making now has a name with a dot
    found = [file for depth in range(3) for file in folder.glob("*/" * depth + "[!.]*/status.json")]
    return [str(file.parent) for file in sorted(found, key=_age)[:SHOWN]]


def _age(file: Path) -> float:
    return -file.stat().st_mtime
