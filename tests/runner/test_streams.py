"""A run or a command whose output nobody reads still ends normally and is recorded."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress

from agentrl.core.streams import wrap_stream
from agentrl.store.run import RunDirectory
from tests.support.stand_in_workers import COMPLETES, CRASHES, DRIVER, PRELUDE, REFUSES, the_run, wait_for

TALKS = (
    PRELUDE
    + """
from rich.console import Console
from agentrl.core.streams import keep_streams
keep_streams()
console = Console(soft_wrap=True)
while not os.path.exists(str(run.path) + ".go"): time.sleep(0.02)
for number in range(4_000): console.print(number); print(number, file=sys.stderr)
run.set_status("completed")
"""
)


def agentrl(where: Path, *arguments: str, worker: str = COMPLETES, **channels: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"WORKER": worker} | channels.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], cwd=where, env=environment, text=True, **channels
    )


@pytest.mark.parametrize("channel", ["stdout", pytest.param("stderr", marks=pytest.mark.slow)])
def test_a_run_goes_on_when_the_reader_of_its_output_leaves(tmp_path: Path, channel: str) -> None:
    other = {"stdout": "stderr", "stderr": "stdout"}[channel]
    process = agentrl(tmp_path, worker=TALKS, **{channel: subprocess.PIPE, other: subprocess.DEVNULL})
    wait_for(tmp_path, "*.starts")
    getattr(process, channel).close()
    Path(str(the_run(tmp_path).path) + ".go").touch()
    assert process.wait(timeout=60) == 0
    assert the_run(tmp_path).status()["status"] == "completed"


@pytest.mark.slow
def test_a_sweep_goes_on_when_the_reader_of_its_output_leaves(tmp_path: Path) -> None:
    process = agentrl(tmp_path, "-m", "seed=0,1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    assert process.wait(timeout=60) == 0
    assert [RunDirectory(path.parent).status()["status"] for path in tmp_path.glob("runs/*/[!.]*/status.json")] == [
        "completed",
        "completed",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("worker", "code", "state"), [(COMPLETES, 0, "completed"), (REFUSES, 2, "failed")])
def test_a_run_without_any_output_keeps_its_exit_code(tmp_path: Path, worker: str, code: int, state: str) -> None:
    process = agentrl(tmp_path, worker=worker, preexec_fn=lambda: [os.close(descriptor) for descriptor in (0, 1, 2)])
    assert process.wait(timeout=60) == code
    assert the_run(tmp_path).status()["status"] == state


def test_a_crash_is_recorded_when_nobody_reads_the_output(tmp_path: Path) -> None:
    process = agentrl(tmp_path, worker=CRASHES, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    assert process.wait(timeout=60) == 137
    assert "killed by signal 9" in the_run(tmp_path).status()["error"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_behind_standard_output_fails_a_command_but_not_a_run(tmp_path: Path) -> None:
    """The result of a run is its directory; the result of a command is what it prints."""
    with open("/dev/full", "w") as full:
        process = agentrl(tmp_path, stdout=full, stderr=subprocess.PIPE)
        err = process.communicate(timeout=60)[1]
        assert (process.returncode, the_run(tmp_path).status()["status"]) == (0, "completed")
        assert (
            err == "agentrl: error: standard output could not be written: No space left on device; send it elsewhere\n"
        )
        show = agentrl(tmp_path, "show", "--help", stdout=full, stderr=subprocess.PIPE)
        assert "No space left on device" in show.communicate(timeout=60)[1]
        assert show.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [("--help",), *(pytest.param(other, marks=pytest.mark.slow) for other in (("show", "--help"), ("--cfg", "job")))],
)
def test_a_command_whose_reader_leaves_ends_silently(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    process = agentrl(tmp_path, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"},
        {"LANG": "POSIX", "LC_ALL": ""},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=lambda names: "-".join(names),
)
def test_a_terminal_that_lacks_letters_does_not_change_the_records(tmp_path: Path, locale: dict[str, str]) -> None:
    keeps = "from agentrl.core.streams import keep_streams; keep_streams()\n"
    worker = keeps + COMPLETES + "; print('\\u00b1 \\u2192 \\u2026 \\u540d')"
    where = tmp_path / "Größe ± →"
    where.mkdir()
    process = agentrl(
        where, worker=worker, env=locale, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace"
    )
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (0, "")
    assert the_run(where).status()["status"] == "completed"
    assert the_run(where).config().runs_dir == "runs"


def test_letters_that_an_encoding_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    stream = wrap_stream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("0.3 ± 0.1 → é … 名 \udcff\n")
    console = Console(file=stream, force_terminal=True, legacy_windows=False)
    with Progress(BarColumn(), console=console, redirect_stdout=False, redirect_stderr=False) as bars:
        bars.update(bars.add_task("train", total=2), completed=1)
    stream.flush()
    assert raw.getvalue().decode("ascii").startswith("0.3 +- 0.1 -> e ... ? ?\n")
    latin = io.BytesIO()
    stream = wrap_stream(io.TextIOWrapper(latin, encoding="latin-1"))
    stream.write("± é …")
    stream.flush()
    assert latin.getvalue().decode("latin-1") == "± é ..."


@pytest.mark.slow
def test_the_real_worker_trains_on_when_its_reader_leaves(tmp_path: Path) -> None:
    few = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "rollout.num_generations=4")
    sizes = (*few, "trainer.max_steps=2", "bench.train_tasks=12", "bench.test_tasks=4")
    process = subprocess.Popen(
        [sys.executable, "-m", "agentrl", *sizes, "hardware.threads=1"],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("Scaled down for model=tiny by ")  # what `head -1` would read
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == 0
    run = the_run(tmp_path)
    assert run.status()["status"] == "completed" and len(run.read_metrics()) == 2
