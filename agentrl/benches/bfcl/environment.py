"""Plays one BFCL episode: the user's turns, calls of the official simulated APIs, the official step limit."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.benches.bfcl.calls import RefusedCall, call_string, decode_calls, read_turn
from agentrl.benches.bfcl.data import Entry
from agentrl.benches.bfcl.simulator import Simulator, TookTooLong
from agentrl.core.text import replace_surrogates
from agentrl.core.trajectory import ToolCall

STEP_LIMIT = 20  # assistant turns per user turn; the calls of one more are executed, then the episode ends
ERROR = "Error during execution: "
TOO_LONG = f"{ERROR}the call took too long"


class SimulatedApis:
    """The instances of one episode in the child process. If the child has ended, the calls so far are repeated."""

    def __init__(self, simulator: Simulator, payload: Mapping[str, Any]) -> None:
        self._simulator, self._payload = simulator, dict(payload)
        self._key = simulator.new_key()
        self._generation: int | None = None
        self._history: list[str] = []
        weakref.finalize(self, _forget, simulator, self._key)

    def execute(self, call: str) -> str:
        """Return the official result text of a call string. A call that does not return in time has no effect."""
        with self._simulator.lock:
            self._restore()
            try:
                result: str = self._ask([call])["results"][0]
            except TookTooLong:
                return TOO_LONG
            self._history.append(call)
            return result

    def memory(self) -> str:
        """Return what the memory shows in the system prompt now."""
        with self._simulator.lock:
            self._restore()
            return str(self._ask([])["memory"])

    def flush(self) -> None:
        """Write the memory to its snapshot files."""
        with self._simulator.lock:
            self._restore()
            self._simulator.ask("flush", key=self._key, entry=self._payload)

    def _restore(self) -> None:
        generation = self._simulator.generation()
        if self._history and self._generation != generation:
            self._ask(self._history, self._simulator.timeout * len(self._history))
        self._generation = generation

    def _ask(self, calls: list[str], timeout: float | None = None) -> dict[str, Any]:
        return self._simulator.ask("execute", timeout=timeout, key=self._key, entry=self._payload, calls=calls)


def _forget(simulator: Simulator, key: str) -> None:
    simulator.forget(key)


class BfclEnvironment:
    """An episode of `entry`. The simulated APIs or a recording `execute` its calls."""

    def __init__(self, entry: Entry, execute: Callable[[str, dict[str, Any]], str] | SimulatedApis) -> None:
        self._entry, self._execute = entry, execute
        self._known = entry.docs.keys()
        self._later = itertools.islice(entry.turns, 1, None)
        self._steps = 0

    def call(self, name: str, arguments: Any, turn: int) -> ToolCall:
        """Execute one call. `arguments` may also be the JSON text of an object, as the official decoder allows."""
        observation = replace_surrogates(self._result(name, arguments))
        failed = observation.startswith(ERROR)
        return ToolCall(turn, name, arguments, observation, failed)

    def _result(self, name: Any, arguments: Any) -> str:
        step = decode_calls([{"name": name, "arguments": arguments}])
        if step is None:  # the official loop ends the turn; here the model reads why
            return f"{ERROR}the arguments are not a JSON object"
        ((name, arguments),) = step
        try:
            call = call_string(name, arguments, self._known)
        except RefusedCall as refusal:
            return f"{ERROR}{refusal}"
        if isinstance(self._execute, SimulatedApis):
            return self._execute.execute(call)
        return self._execute(name.strip(), arguments)

    def read(self, text: str) -> tuple[str, list[tuple[str, Any]]]:
        """Return the content and the calls of an assistant's text. A step that cannot be decoded ends the turn."""
        return read_turn(text)

    def next_message(self) -> str | None:
        """Return the user's next turn. None after the last one."""
        self._steps = 0
        return next(self._later, None)

    def flush(self) -> None:
        """Write the memory to its snapshot files, at the end of a conversation."""
        if isinstance(self._execute, SimulatedApis):
            self._execute.flush()

    def continue_episode(self) -> bool:
        """False after more than STEP_LIMIT steps in a user turn. The official loop then ends the entry."""
        self._steps += 1
        return self._steps <= STEP_LIMIT
