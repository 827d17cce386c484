"""Several machines that train one run: each shows who listens to signals there, and that it sees the same run."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.core.stop import any_process
from agentrl.store.durable import write_text
from agentrl.store.run import RunDirectory

PATIENCE_S = 60.0  # until a file that one machine has written is seen by the others


def introduce(run: RunDirectory) -> None:
    """Write down the process of this machine that its launcher passes signals on to."""
    if os.environ.get("LOCAL_RANK") == "0" and (rank := int(os.environ.get("GROUP_RANK", "0"))) > 0:
        write_text(run.node_path(rank), str(os.getpid()))


def meet(run: RunDirectory, config: Config) -> Config:
    """Return the configuration of the first machine, once all are known to work in one run directory.

    All processes must call this together. Raises UserError if they do not share a directory.
    """
    leader, config = broadcast_object_list([run.status(), config])
    deadline = time.monotonic() + PATIENCE_S
    while not (seen := _sees(run, leader)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if any_process(not seen):
        raise UserError(
            f"{run.path} is not the same directory on all hardware.nodes={config.hardware.nodes} machines: give each "
            "the same command, and a runs_dir on a disk that they share"
        )
    PartialState().wait_for_everyone()
    return config


def _sees(run: RunDirectory, leader: dict[str, str]) -> bool:
    with suppress(UserError):  # half a file, or none yet
        return all(run.status().get(key) == leader.get(key) for key in ("pid", "host", "status"))
    return False
