"""Use agentrl from Python: train, evaluate, and read the results of a run. `import agentrl` offers these names.

Each call does what the command line does with the same words. Runs are stored in run directories, the same call
continues where it stopped, and a completed run is not repeated. The import is light: a child process does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.store.run import RunDirectory

Overrides = Sequence[str] | Mapping[str, Any]


def run(overrides: Overrides = ()) -> RunDirectory:
    """Train and evaluate what `overrides` describe, e.g. `["algo=grpo", "trainer.max_steps=10"]`.

    The mapping `{"algo": "grpo", "trainer.max_steps": 10}` means the same. With `dry_run=true` nothing is loaded or
    trained.

    Returns:
        The run directory, complete.

    Raises:
        UserError: a value or combination cannot work, or the run failed; the message gives the reason.
        KeyboardInterrupt: a signal stopped the run; the same call continues it.
    """
    from agentrl.config.compose import compose

    return _finish(compose(_as_words(overrides)))


def evaluate(
    model: str | Path = "tiny", bench: str | None = None, *, endpoint: str | None = None, overrides: Overrides = ()
) -> RunDirectory:
    """Evaluate a model as it is, on one bench.

    `model` is a preset, a run directory, a checkpoint, an adapter or a hub id. With `endpoint`, the address of an
    OpenAI-compatible server, it is the model's name there. Without `bench`, the bench is that of the model's run, else
    minihop. `overrides` are keys such as `eval.samples=4`. `agentrl eval` does the same for several models and benches.

    Returns:
        The run directory of the evaluation: `summary()["eval"]["after"]` has the metrics, `items("after")` the items.

    Raises:
        UserError: as in `run`.
    """
    from agentrl.commands.eval import compose_job, default_bench, typed_names
    from agentrl.config.typed import restore_typed_names

    own, words = {} if endpoint is None else {"endpoint": endpoint}, _as_words(overrides)
    if bench is None:
        bench = default_bench(own, [str(model)])
    if "," in bench:
        raise UserError(f"bench={bench}: a call takes one bench; call agentrl.evaluate for each")
    try:
        return _finish(compose_job(str(model), bench, own, words, [bench], [str(model)]))
    except UserError as error:
        raise UserError(restore_typed_names(str(error), typed_names(own, words, bench))) from error


def load_run(path: str | Path) -> RunDirectory:
    """Return the run directory at `path`. Raise UserError if there is none, or if it is damaged."""
    from agentrl.commands.arguments import open_run

    return open_run(str(path))


def _as_words(overrides: Overrides) -> list[str]:
    if isinstance(overrides, str):
        raise UserError(f"overrides is the text {overrides!r}; give a list of texts: [{overrides!r}]")
    if not isinstance(overrides, Mapping | Sequence):
        raise UserError(f"overrides is {overrides!r}; give a list of texts such as 'seed=1', or a mapping")
    if not isinstance(overrides, Mapping):
        for position, word in enumerate(overrides):
            if not isinstance(word, str):
                raise UserError(f"overrides[{position}] is {word!r}; give texts such as 'seed=1', or a mapping")
        return list(overrides)
    return [f"{key}={value if isinstance(value, str | Path) else _as_word(value)}" for key, value in overrides.items()]


def _as_word(value: Any) -> str:
    """Write a Python value in Hydra's grammar; plain text needs no quotes, because `compose` adds them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_as_word, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_word(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str | Path):
        escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)


def _finish(config: Any) -> RunDirectory:
    from agentrl.runner.launch import COMPLETED, INTERRUPTED
    from agentrl.runner.start import start
    from agentrl.store.identity import run_path

    code = start(config)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    found = RunDirectory(run_path(config))
    if code != COMPLETED:
        reason = str(found.status().get("error", "")).strip().splitlines()
        raise UserError(f"the run failed: {reason[-1] if reason else f'exit code {code}'} ({found.path})")
    return found
