"""Was the model trained on rows that are in the test of this run? The configurations of its runs tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.config.benches import SystemCheck
from agentrl.config.load import saved_values
from agentrl.config.schema import Config
from agentrl.config.target import run_of

# Keys of a bench that decide which rows of its data are the test. `train_tasks` and `test_tasks` are systemcheck's.
DIVISION = ("path", "data_seed", "test_fraction", "train_on_test", "train_tasks", "test_tasks")


def check_split(config: Config) -> list[str]:
    """Return a warning if a run that the model comes from divided the data of this bench otherwise."""
    bench, model = config.bench, config.model.path
    if "test_fraction" not in type(bench).model_fields and not isinstance(bench, SystemCheck):
        return []  # its data is generated, or has a test of its own
    seen: set[Path] = set()
    while (run := run_of(Path(model).expanduser().absolute())) is not None and run not in seen:
        seen.add(run)
        saved = saved_values(run)
        known = saved.bench if saved.bench.name == bench.name else {}
        for key in DIVISION:
            there, here = (_value(key, one) for one in (known.get(key), getattr(bench, key, None)))
            if key in known and there != here:
                return [
                    f"{run}, which this model comes from, was trained with bench.{key}={there}, and here it is "
                    f"{here}: the test may hold rows that it was trained on; set bench.{key}={there}"
                ]
        model = str(saved.model.path)
    return []


def _value(key: str, value: Any) -> Any:
    """Return a value for comparison and for messages: a path is absolute, as a run saves it."""
    if value is None:
        return "null"
    return str(Path(value).expanduser().absolute()) if key == "path" else value
