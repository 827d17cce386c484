"""The parts that commands share: how arguments are separated, and what a command says without arguments."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.commands.arguments import file_to_write, open_run, read_flag, read_whole_number, split_keys, split_places
from agentrl.commands.cli import COMMANDS
from agentrl.core.errors import UserError

KNOWN = {"out": "File to write.", "transcripts": "File to read."}


def test_a_command_separates_its_keys_from_the_configurations() -> None:
    own, rest = split_keys(["bench=ftrl", "out=x.jsonl", "--config-dir", "mine", "seed=1"], KNOWN)
    assert (own, rest) == ({"out": "x.jsonl"}, ["bench=ftrl", "--config-dir", "mine", "seed=1"])
    with pytest.raises(UserError, match="'transcript' is not key=value; did you mean transcripts"):
        split_keys(["transcript"], KNOWN)
    with pytest.raises(UserError, match="'model' is not key=value; agentrl --help lists the keys of a run"):
        split_keys(["model"], {})
    with pytest.raises(UserError, match="out is given twice"):
        split_keys(["out=a", "out=b"], KNOWN)


def test_a_command_separates_places_from_keys() -> None:
    assert split_places(["runs/a", "out=x", "runs/b"], KNOWN) == (["runs/a", "runs/b"], {"out": "x"})
    with pytest.raises(UserError, match="this command has no key transcript; did you mean transcripts"):
        split_places(["runs/a", "transcript=x"], KNOWN)


def test_typed_values_are_read_or_refused() -> None:
    own = {"yes": "true", "word": "yes", "count": "3", "minus": "-1", "digit": "²"}
    assert (read_flag(own, "yes"), read_flag(own, "absent"), read_flag(own, "absent", default=True)) == (
        True,
        False,
        True,
    )
    assert (read_whole_number(own, "count", 5), read_whole_number(own, "absent", 5)) == (3, 5)
    for name in ("word", "minus", "digit"):
        with pytest.raises(UserError, match=f"{name}=.*: must be a whole number of at least 1"):
            read_whole_number(own, name, 5)
    with pytest.raises(UserError, match="count=3: must be a whole number of at least 4"):
        read_whole_number(own, "count", 5, least=4)
    with pytest.raises(UserError, match="word=yes: must be true or false"):
        read_flag(own, "word")


def test_a_file_to_write_is_checked_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "out.md"
    assert file_to_write(str(file), new=True) == file
    file.touch()
    assert file_to_write(str(file)) == file
    for path, new, reason in (
        (file, True, "exists already; name another file, or remove it"),
        (tmp_path, False, "is a directory; name a file"),
        (tmp_path / "absent" / "x.md", False, "its directory must exist and be writable"),
    ):
        with pytest.raises(UserError, match=f"out={path}: {reason}"):
            file_to_write(str(path), new)
    with pytest.raises(UserError, match=r"out=x\.pdf: must end in \.md, \.tex or \.csv"):
        file_to_write("x.pdf", kinds=(".md", ".tex", ".csv"))


def test_a_place_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        open_run(str(tmp_path))
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        open_run(str(tmp_path))


ALL_VERBS = """
import sys
from agentrl.commands.cli import COMMANDS, main
for verb in COMMANDS:
    for words in ([], ["--help"], ["-h", "seed=1"]) if verb not in ("doctor", "eval") else (["--help"], ["-h"]):
        sys.argv = ["agentrl", verb, *words]
        print("==", verb, *words, flush=True)
        try:
            main()
        except SystemExit as end:
            print("== code", end.code, flush=True)
heavy = {"torch", "transformers", "trl", "peft", "datasets", "matplotlib", "wandb"}
print("== heavy", sorted(heavy & set(sys.modules)))
"""


def test_every_command_has_help_and_says_what_is_missing(tmp_path: Path) -> None:
    """Without arguments, doctor and eval do what `agentrl` alone describes; the others refuse in one line."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_VERBS],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    said = done.stdout.split("== ")[1:]
    assert said[-1] == "heavy []\n"
    for asked, code in zip(said[:-1:2], said[1:-1:2], strict=True):
        verb, text = asked.split()[0], asked.partition("\n")[2]
        if asked.splitlines()[0].split()[1:]:
            assert (code, text) == ("code 0\n", importlib.import_module(COMMANDS[verb]).HELP + "\n"), asked
            assert text.startswith(f"agentrl {verb} "), asked
        else:
            assert code == "code 2\n"
            assert text.startswith("agentrl: error: ") and text.count("\n") == 1, text
    assert list(tmp_path.iterdir()) == []
