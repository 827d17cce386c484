"""The keys of the machines that a run computes on, and of the batch system that gives them."""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Literal

from agentrl.config.key import Group, Holds, key


def _is_meeting_point(text: str | None) -> bool:
    host, _, port = str(text).rpartition(":")
    return text is None or (host != "" and "/" not in host and port.isdigit() and 0 < int(port) < 65536)


class Slurm(Group):
    submit: bool = key("Submit the run as a SLURM job instead of starting it here.")
    time: Annotated[
        str | None,
        Holds(
            # a number is what YAML makes of an unquoted 24:00:00, and SLURM would read it as minutes
            lambda time: time is None or re.fullmatch(r"(\d+-)?\d+(:\d\d){1,2}|\d+-\d+", time) is not None,
            "must be a limit such as 24:00:00 or 2-12:00:00, quoted in a YAML file, or null",
        ),
    ] = key("Time limit of the job (--time); null takes the cluster's.")
    partition: str | None = key("Partition of the job; null takes the cluster's.")
    account: str | None = key("Account that the job is charged to; null takes yours.")
    options: list[str] = key("Further options of sbatch, e.g. [--qos=high,--cpus-per-gpu=8].")
    setup: str | None = key(
        "Shell commands at the start of the job, e.g. 'module load cuda; source ~/vllm/bin/activate'."
    )
    vllm_node: bool = key(
        "With vllm.mode=server, give the server a machine of its own; false puts it on the first one that trains."
    )
    grace: int = key(
        "Seconds that the run gets to save: before the time limit, when it goes back into the queue, and after its "
        "vLLM server has ended.",
        ge=30,
    )

    @property
    def limit_s(self) -> float:
        """The time limit in seconds: days-hours[:minutes[:seconds]], or [hours:]minutes:seconds. 0 means no limit."""
        days, dash, rest = (self.time or "0").rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        hours, minutes, seconds = [*parts, 0, 0][:3] if dash else [0, 0, *parts][-3:]
        return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds) or math.inf


class Hardware(Group):
    name: str = key("Hardware.")
    device: Literal["cpu", "cuda"] = key("Device of the model.")
    processes: int = key("Number of training processes, on all machines together.", ge=1)
    nodes: int = key(
        "Number of machines that train together, each with the same number of processes.", ge=1, operational=True
    )
    node_rank: int | None = key("Number of this machine among them, from 0; null asks SLURM.", ge=0, operational=True)
    rendezvous: Annotated[
        str | None, Holds(_is_meeting_point, "must be host:port: machine 0 and a free port of it")
    ] = key("Where the machines meet, the same on each.", operational=True)
    threads: int | None = key("CPU threads of each process; null takes all cores.", ge=1, hint=" for all cores")
    bf16: bool = key("Compute in bfloat16 (autocast) while training.")
    accelerate_config: str | None = key(
        "How processes share the model: ddp (a whole copy each), fsdp2, zero2 or zero3 (DeepSpeed), or a file that "
        "`accelerate config` made; null is ddp.",
        place="settings",
    )
    slurm: Slurm = key("The job that hardware=slurm submits.", operational=True)

    @property
    def processes_here(self) -> int:
        """Training processes of one machine."""
        return self.processes // self.nodes

    @property
    def rank_here(self) -> int:
        """Which of the machines this one is."""
        if self.nodes == 1 or self.submits:
            return 0
        return int(os.environ.get("SLURM_NODEID", "0")) if self.node_rank is None else self.node_rank

    @property
    def submits(self) -> bool:
        """Whether the run goes to SLURM. The job itself names the place where its machines meet."""
        return self.slurm.submit and self.rendezvous is None
