"""Machines that cannot meet are refused in words, and one that waits for the first says so."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.hardware import Hardware
from agentrl.core.errors import UserError
from agentrl.runner import reach, rendezvous, start
from tests.support.command_line import run_here
from tests.support.helpers import composed


def machine(rank: int, where: str) -> tuple[str, ...]:
    return (
        *("hardware.processes=2", "hardware.nodes=2", "trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2"),
        *(f"hardware.node_rank={rank}", f"hardware.rendezvous={where}"),
    )


def hardware(rank: int, where: str) -> Hardware:
    return composed(*machine(rank, where)).hardware


@pytest.fixture
def taken() -> Any:
    """A socket that listens, and its address."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other, f"127.0.0.1:{other.getsockname()[1]}"


@pytest.mark.parametrize("rank", [0, 1])
def test_machines_that_meet_at_an_unknown_name_are_refused(
    rank: int, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(*machine(rank, "no-such-host.invalid:29500")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "hardware.rendezvous=no-such-host.invalid:29500: this machine finds no address of no-such-host.inv" in line
    assert not Path("runs").exists()
    assert reach.check_reach(composed(*machine(rank, "localhost:9"))) == []  # the other may start later


def test_a_port_that_another_program_has_is_refused_on_machine_0(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, taken: Any
) -> None:
    other, where = taken
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rendezvous, "FREE_S", 0.2)
    assert run_here(*machine(0, where)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"hardware.rendezvous={where}: another program uses this port of machine 0; give all" in line
    rendezvous.wait_for_machines(hardware(1, where))  # that is where machine 0 listens
    other.close()
    rendezvous.wait_for_machines(hardware(0, where))


@pytest.mark.slow
def test_a_machine_that_waits_for_the_first_one_says_so(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, taken: Any
) -> None:
    other, where = taken
    other.close()
    monkeypatch.setattr(rendezvous, "SILENT_S", 0.0)
    monkeypatch.setattr(rendezvous, "WAIT_S", 1.5)
    with pytest.raises(UserError, match=f"hardware.rendezvous={where}: machine 0 does not listen there after 1.5 s"):
        rendezvous.wait_for_machines(hardware(1, where))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"agentrl: waiting for machine 0, which does not listen at hardware.rendezvous={where} yet"

    def begin() -> None:
        time.sleep(0.5)
        late.listen()

    with socket.socket() as late:
        late.bind(("127.0.0.1", int(where.rpartition(":")[2])))
        thread = threading.Thread(target=begin)
        thread.start()
        rendezvous.wait_for_machines(hardware(1, where))
        thread.join()


def test_the_first_machine_says_for_whom_it_waits(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "launch", lambda *_: 0)
    for rank, said in (
        (0, "It waits up to 15 minutes for the other machine at hardware.rendezvous=localhost:9."),
        (1, ""),
    ):
        assert start.start(composed(*machine(rank, "localhost:9"), f"runs_dir={tmp_path}")) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert said in out and (rank == 0 or out == "")
