"""Live trackers: mirrors of the run's files, through the callbacks that transformers already has."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from importlib.util import find_spec

from transformers import TrainerCallback
from transformers.integrations import TrackioCallback, WandbCallback

from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.run import RunDirectory


def tracker_callbacks(config: Config, run: RunDirectory) -> list[TrainerCallback]:
    """Callbacks of the chosen tracker; none for `tracker=none`."""
    tracker = config.tracker
    if tracker.name == "none" or os.environ.get("RANK", "0") != "0":
        return []
    if tracker.name == "trackio":
        if find_spec("trackio") is None:
            raise UserError("tracker=trackio: the package is not installed; pip install 'agentrl[trackio]'")
        os.environ["TRACKIO_PROJECT"] = tracker.project
        return [TrackioCallback()]
    os.environ["WANDB_MODE"] = "offline" if tracker.name == "wandb_offline" else "online"
    import wandb

    # The id follows from the run directory, so that a resumed run goes on in the same W&B run and no other joins it.
    identity = hashlib.sha256(f"{run.path}/{run.status()['created']}".encode()).hexdigest()[:16]
    wandb.init(
        project=tracker.project,
        entity=tracker.entity,
        group=tracker.group,
        job_type="train",
        tags=[config.algo.name, config.model.name, config.bench.name, *tracker.tags],
        name=f"{config.name}/{run.path.name}",
        id=identity,
        resume="allow",
        dir=str(run.path),
        config=asdict(config),
    )
    return [WandbCallback()]
