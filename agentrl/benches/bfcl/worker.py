"""The child process with BFCL's simulated APIs and checkers, which are those of bfcl-eval.


`simulator.py` starts this file. It reads one JSON object per line and answers each with one line. It imports nothing of
agentrl but the encoder of the vector memory, and no other file imports bfcl-eval. The import of bfcl-eval makes folders
(here in a temporary one), and its instances are module globals. It evaluates call strings, so a call may hang or use up
the memory, which must not stop the trainer. `calls.call_string` makes these strings from known names and the `repr` of
JSON values.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL = "agentrl"  # part of the instances' names; one name is enough, because every episode has its own world


class Worlds:
    """The instances of each episode. They are in the official module's globals only during a request."""

    def __init__(self) -> None:
        self.utils = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils")
        self._own = set(vars(self.utils))
        self._kept: dict[str, dict[str, Any]] = {}

    @contextmanager
    def world(self, key: str | None) -> Iterator[None]:
        """Put the instances of `key` into the globals, and remove them at the end. None makes a world for one use."""
        names = vars(self.utils)
        names.update(self._kept.pop(key, {}) if key else {})
        try:
            yield
        finally:
            instances = {name: value for name, value in names.items() if name not in self._own}
            for name in instances:
                del names[name]
            if key:
                self._kept[key] = instances

    def drop(self, keys: list[str]) -> None:
        for key in keys:
            self._kept.pop(key, None)


def execute(worlds: Worlds, key: str, entry: dict[str, Any], calls: list[str]) -> dict[str, Any]:
    """Return the results of one step, and what the memory shows in the context (None without a memory)."""
    with worlds.world(key):
        results, instances = _run(worlds, entry, calls)
    return {"results": results, "memory": _memory(instances)}


def flush(worlds: Worlds, key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Write the episode's memory to its snapshot files."""
    with worlds.world(key):
        _, instances = _run(worlds, entry, [])
        for instance in instances.values():
            instance._flush_memory_to_local_file()
    return {}


def _run(worlds: Worlds, entry: dict[str, Any], calls: list[str]) -> tuple[list[str], dict[str, Any]]:
    config = {name: dict(values) for name, values in entry["initial_config"].items()}
    for values in config.values():
        if "model_result_dir" in values:
            values["model_result_dir"] = Path(values["model_result_dir"])
    results, instances = worlds.utils.execute_multi_turn_func_call(
        calls,
        config,
        entry["involved_classes"],
        MODEL,
        entry["id"],
        long_context="long_context" in entry["id"],
    )
    return results, instances


def _memory(instances: dict[str, Any]) -> str | None:
    for instance in instances.values():
        if hasattr(instance, "_dump_core_memory_to_context"):
            return str(instance._dump_core_memory_to_context())
    return None


def check(worlds: Worlds, entry: dict[str, Any], turns: list[list[list[str]]], gold: list[list[str]]) -> dict[str, Any]:
    """Return the official multi-turn verdict on call strings, by turn and step."""
    checker = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
    category = entry["id"].rsplit("_", 1)[0]
    with worlds.world(None):
        verdict = checker.multi_turn_checker(turns, gold, entry, category, MODEL)
    return {"valid": bool(verdict["valid"]), "error_type": verdict.get("error_type")}


def check_answer(worlds: Worlds, response: Any, answers: list[str]) -> dict[str, Any]:
    """Return the official verdict on a final answer (memory and web search)."""
    checker = importlib.import_module("bfcl_eval.eval_checker.agentic_eval.agentic_checker")
    verdict = checker.agentic_checker(response, answers)
    return {"valid": bool(verdict["valid"]), "error_type": verdict.get("error_type")}


def probe(worlds: Worlds, classes: list[str]) -> dict[str, Any]:
    """Map each class that cannot be used to the reason."""
    config = importlib.import_module("bfcl_eval.constants.executable_backend_config")
    missing = {}
    for name in classes:
        try:
            importlib.import_module(config.CLASS_FILE_PATH_MAPPING[name])
        except Exception as error:  # an encoder that cannot be downloaded may raise anything
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"missing": missing}


def load_encoder(worlds: Worlds, path: str) -> dict[str, Any]:
    """Load the encoder at `path` and the official vector memory with it. The answer has the reason if that fails."""
    from agentrl.benches.bfcl.vector_search import stand_in  # slow to import, and only the vector memory needs it

    try:
        stand_in(path)
        importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.func_source_code.memory_vector")
    except Exception as error:  # the bench skips the category, and says why
        return {"problem": (str(error) or type(error).__name__).splitlines()[0]}
    return {"problem": None}


OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "execute": execute,
    "flush": flush,
    "check": check,
    "check_answer": check_answer,
    "probe": probe,
    "load_encoder": load_encoder,
}


def main(memory_bytes: int) -> None:
    """Answer requests until the input ends. What the official code prints is dropped."""
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worlds = Worlds()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        worlds.drop(request.pop("drop"))
        try:
            answer = OPERATIONS[request.pop("operation")](worlds, **request)
        except Exception as error:  # the parent gets the error, and knows whose request it was
            answer = {"failed": f"{type(error).__name__}: {error}"}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
