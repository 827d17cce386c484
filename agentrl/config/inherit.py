"""What an evaluation takes from the runs whose models it plays: sampling, the bench's keys and the judge.

Reads only configuration files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from agentrl.config.checks import expand_home
from agentrl.config.compose import compose_values
from agentrl.config.load import operational_keys, saved_values
from agentrl.config.target import run_of
from agentrl.config.typed import config_folders, escape_interpolation
from agentrl.core.errors import UserError

SAMPLING = (  # keys taken from a run whose model is evaluated on the bench of its training
    *("rollout.temperature", "rollout.top_p", "rollout.max_turns", "rollout.max_prompt_tokens"),
    *("rollout.max_completion_tokens", "rollout.max_turn_tokens", "eval.temperature", "eval.top_p"),
)
TASKS = ("bench", "judge")  # groups taken from such a run: they say which tasks are played, and who grades them
JUDGE = {"judge.name": "judge"}  # the group's name chooses the option


def bench_of(names: Sequence[str]) -> str | None:
    """Return the bench on which the runs among the models `names` were trained. None if none of them is a run.

    Raises UserError if they were trained on different benches.
    """
    benches = {run["bench"]["name"]: name for name in names if (run := _settings_of(name)) is not None}
    if len(benches) > 1:
        raise UserError(f"the runs were trained on different benches; say which to play: bench={','.join(benches)}")
    return next(iter(benches), None)


def sampling_of(name: str, bench: str) -> list[str]:
    """Return overrides that sample the model of a run as the run did, if `bench` is the run's. Else no overrides."""
    run = _settings_of(name)
    if run is None or run["bench"]["name"] != bench:
        return []
    known = {key: OmegaConf.select(run, key, default="") for key in SAMPLING}
    return [_override(key, value) for key, value in known.items() if value != ""]


def tasks_of(
    names: Sequence[str], bench: str, chosen: list[str], given: list[str], only: Sequence[str] | None = None
) -> list[str]:
    """Return overrides with which all models `names` play the tasks of the runs among them, if trained on `bench`.

    So the division into training and test split is that of the training, and no model is tested on rows that it was
    trained on. The judge is theirs, too. Only values that differ from those composed of `chosen` are returned, and no
    key of `given`, which the user typed. `only` names the keys that count, if not all do. Raises UserError if the runs
    differ in a key.
    """
    settings = {name: run for name in names if (run := _settings_of(name)) is not None}
    runs = {name: _tasks(run) for name, run in settings.items() if run["bench"]["name"] == bench}
    if not runs:
        return []
    folders = [f"--config-dir={folder}" for folder in config_folders(given)]
    before = _tasks(compose_values([*chosen, *folders]))
    typed = {override.lstrip("+").partition("=")[0] for override in given}
    free = {*typed, *operational_keys()}
    found = []
    for key, value in next(iter(runs.values())).items():
        if (only is not None and key not in only) or key in typed or ("judge" in typed and key.startswith("judge.")):
            continue
        others = {name: run.get(key) for name, run in runs.items()}
        if key not in free and any(other != value for other in others.values()):
            told, typed_as = ", ".join(f"{other} in {name}" for name, other in others.items()), JUDGE.get(key, key)
            raise UserError(f"{typed_as} differs between the runs ({told}); say which to use: {typed_as}=...")
        if key in before and before[key] == value:
            continue
        found.append(_override(JUDGE.get(key, key), value))
    return found


def _settings_of(name: str) -> DictConfig | None:
    """Return the saved values of the run that a model's name means. None if it means no run."""
    run = run_of(Path(expand_home(name)).absolute())
    return None if run is None else saved_values(run)


def _tasks(values: DictConfig) -> dict[str, Any]:
    """Return the keys of TASKS and their values; those of mappings below one by one."""
    groups = OmegaConf.to_container(OmegaConf.masked_copy(values, [*TASKS]), resolve=True, throw_on_missing=False)
    found = dict(_leaves(groups))
    return {key: value for key, value in found.items() if key != "bench.name"}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _override(key: str, value: Any) -> str:
    """Write a value for the command line. Keys below `bench.options` are the user's own: no file declares them."""
    text = escape_interpolation(value) if isinstance(value, str) else json.dumps(value)
    if not key.startswith("bench.options."):
        return f"{key}={text}"
    if isinstance(value, str):  # in quotes it stays text
        text = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"++{key}={text}"
