"""`agentrl wandb dashboard [entity=...] [project=...] [algo=...] [dry_run=true]`: make saved views in W&B."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from agentrl.commands.arguments import key_lines, read_flag, split_places
from agentrl.core.errors import UserError, first_line
from agentrl.core.install import install_line

KEYS = {
    "entity": "W&B team or user; default: that of the account.",
    "project": "W&B project; default: agentrl, as tracker.project.",
    "algo": "Views to make, separated by commas: pact, hipo; default: both.",
    "dry_run": "true prints what the views hold and sends nothing.",
}
USAGE = "agentrl wandb dashboard [entity=...] [project=agentrl] [algo=pact,hipo] [dry_run=true]"
HELP = f"""{USAGE}

Makes saved views of a Weights & Biases project, one for each algorithm. It reads WANDB_API_KEY.

{key_lines(KEYS)}"""


def main(arguments: list[str]) -> int:
    """Make new views each time, and print their addresses. Raise UserError if W&B refuses."""
    places, own = split_places(arguments, KEYS)
    if places != ["dashboard"]:
        raise UserError(f"say what to make: {USAGE}")
    from agentrl.tracking.dashboard import VIEWS, workspace

    names = own.get("algo", ",".join(VIEWS)).split(",")
    for name in names:
        if name not in VIEWS:
            raise UserError(f"algo={name} has no view; choose from {', '.join(VIEWS)}")
    if read_flag(own, "dry_run"):
        print(json.dumps({name: VIEWS[name] for name in names}, indent=2))
        return 0
    if find_spec("wandb_workspaces") is None:
        raise UserError(f"the package wandb-workspaces is not installed; {install_line('dashboard')}")
    import wandb

    entity = own.get("entity") or _ask(lambda: str(wandb.Api(timeout=20).default_entity))
    for view in [workspace(name, entity, own.get("project", "agentrl")) for name in names]:
        print(_ask(view.save).url)
    return 0


def _ask(call: Callable[[], Any]) -> Any:
    """Return what a call of W&B returns."""
    try:
        return call()
    except Exception as error:  # no key, no network, no such project: each library raises its own class
        raise UserError(
            f"W&B did not accept the views: {first_line(error)}; check WANDB_API_KEY and the project's name"
        ) from error
