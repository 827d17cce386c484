"""Was the model trained on rows that are in the test of this run? The configurations of its runs tell."""

from __future__ import annotations

from pathlib import Path

from agentrl.config.benches import SystemCheck
from agentrl.config.load import saved_values
from agentrl.config.schema import Config
from agentrl.config.target import run_of

DIVISION = ("data_seed", "test_fraction")  # keys of a bench that decide which rows of its data are the test


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
            if key in known and known[key] != (here := getattr(bench, key)):
                return [
                    f"{run}, which this model comes from, was trained with bench.{key}={known[key]}, and here it is "
                    f"{here}: the test may hold rows that it was trained on; set bench.{key}={known[key]}"
                ]
        model = str(saved.model.path)
    return []
