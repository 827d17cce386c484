"""`agentrl resume RUN [key=value ...]`: continue a run where it stopped, even if its directory was moved."""

from __future__ import annotations

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agentrl.commands.arguments import open_run
from agentrl.config.load import all_keys, saved_values, typed_config
from agentrl.config.meanings import suggest_key
from agentrl.config.schema import Config
from agentrl.core.errors import UserError, first_line
from agentrl.runner.start import start
from agentrl.store.identity import MAY_MOVE, NOT_IN_IDENTITY, is_in_identity

HELP = """agentrl resume RUN [key=value ...]

Continues training from the last checkpoint, or evaluates what is left. For a completed run it shows the result. The
run's own command does the same. You can change only keys that do not make another run, e.g. trainer.save_steps=10 or
judge.max_cost=5, and the address of a server (judge.base_url, algo.endpoint.base_url)."""
# The directory itself gives these keys, because it may have been moved.
WHERE = ("runs_dir", "name", "run_id")


def main(arguments: list[str]) -> int:
    """Continue the run; return its exit code. Raise UserError for a place without a run, or a key of another run."""
    match arguments:
        case [place, *changes] if all("=" in change for change in changes):
            return start(load_config(place, changes), may_move=MAY_MOVE)
        case _:
            raise UserError("name one run directory: agentrl resume RUN [key=value ...]")


def load_config(place: str, changes: list[str]) -> Config:
    """Return the configuration of the run at `place` with `changes`, for where it lies now. Raise UserError."""
    run = open_run(place)
    for change in changes:
        key, known = change.partition("=")[0], [name for name, _, _ in all_keys()]
        if not any(name == key or name.startswith(f"{key}.") for name in known):
            raise UserError(f"unknown key {key}{suggest_key(key, known)}")
        if key in WHERE or (is_in_identity(key) and key not in MAY_MOVE):
            allowed = ", ".join(
                name for name in (*NOT_IN_IDENTITY, *MAY_MOVE) if name not in (*WHERE, "sweep", "dry_run", "scaled_by")
            )
            raise UserError(f"{change}: a run that goes on cannot change {key}; it can change {allowed}")
    try:
        values = OmegaConf.merge(saved_values(run.config_path), OmegaConf.from_dotlist(changes))
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(changes)}: {first_line(error)}") from error
    config = typed_config(values)  # type: ignore[arg-type]
    config.runs_dir, config.name = str(run.path.parent.parent), run.path.parent.name
    config.run_id, config.dry_run = run.path.name, False
    return config
