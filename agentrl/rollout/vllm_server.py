"""A sampler over a running `vllm serve`. It sends one request per turn of each episode; no turn waits for another."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from agentrl.config.schema import Rollout
from agentrl.core.engine import Decoding
from agentrl.core.errors import UserError
from agentrl.endpoint.vllm import Ask, VllmServer, VllmTrouble, server_failure
from agentrl.rollout.sampler import Request, Stop, Turn, always_false, cut_turn

SILENCE_S = 10.0  # after so many seconds without a turn, check the health of the server
LOOK_S = 0.02  # seconds between two checks of whether an environment has answered

Answer = tuple[int, Turn] | VllmTrouble


class ServerSampler:
    """Samples turns at `server`.

    refresh: sends the weights of the policy to the server and returns the model name for requests.
    origin: returns a string that the seeds of a session are made from. The same origin, episode and turn give the same
        seed.
    rest: called when a session ends without an error.
    ends, context: see `Sampler`.
    """

    def __init__(
        self,
        server: VllmServer,
        rollout: Rollout,
        refresh: Callable[[], str],
        origin: Callable[[Decoding | None], str],
        rest: Callable[[], None],
        ends: Sequence[int],
        context: int,
    ) -> None:
        self._server, self._rollout, self.ends, self.context = server, rollout, ends, context
        self._refresh, self._origin, self._rest = refresh, origin, rest

    @contextmanager
    def session(self, decoding: Decoding | None) -> Iterator[_Session]:
        """See `Sampler.session`. Raises UserError if the server fails."""
        name = self._refresh()
        chosen = decoding or Decoding(self._rollout.temperature, self._rollout.top_p)
        with self._open(name, chosen, self._origin(decoding)) as session:
            yield session
        self._rest()

    def sample_now(self, name: str, requests: Sequence[Request], decoding: Decoding, origin: str) -> dict[int, Turn]:
        """Sample one turn per request with the weights that the server has now. Return the turns by episode."""
        turns: dict[int, Turn] = {}
        with self._open(name, decoding, origin) as session:
            session.ask(requests)
            while len(turns) < len(requests):
                turns |= session.sample([])
        return turns

    @contextmanager
    def _open(self, name: str, decoding: Decoding, origin: str) -> Iterator[_Session]:
        session = _Session(self, self._server, name, decoding, origin, self._rollout.max_turn_tokens)
        try:
            yield session
        finally:
            session.close()


class _Session:
    """Sends requests from an event loop in its own thread. Each turn comes back through a queue when it ends."""

    def __init__(
        self,
        sampler: ServerSampler,
        server: VllmServer,
        name: str,
        decoding: Decoding,
        origin: str,
        longest: int | None,
    ) -> None:
        self._sampler, self._server, self._name = sampler, server, name
        self._decoding, self._origin, self._longest = decoding, origin, longest
        self._turns: Counter[int] = Counter()  # sampled so far, by episode
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._connection = server.connection()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def sample(self, requests: Sequence[Request], ready: Callable[[], bool] = always_false) -> dict[int, Turn]:
        """See `Session.sample`. Raises UserError if the server fails."""
        self.ask(requests)
        answers = self._wait(ready)
        while True:
            try:
                answers.append(self._answers.get_nowait())
            except queue.Empty:
                break
        for answer in answers:
            if isinstance(answer, VllmTrouble):
                raise self._server_error(answer) from answer
        return dict(answer for answer in answers if not isinstance(answer, VllmTrouble))

    def ask(self, requests: Sequence[Request]) -> None:
        """Send requests without waiting for their turns."""
        for request in requests:
            seed = seed_of(self._origin, request.episode, self._turns[request.episode])
            self._turns[request.episode] += 1
            asyncio.run_coroutine_threadsafe(self._turn(request, seed), self._loop)

    def close(self) -> None:
        """Cancel the requests in flight and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _turn(self, request: Request, seed: int) -> None:
        sampler = self._sampler
        limit = min(request.limit, self._longest or request.limit, sampler.context - len(request.ids))
        if limit < 1:
            full = len(request.ids) >= sampler.context
            self._answers.put((request.episode, Turn([], [], Stop.CONTEXT if full else Stop.LIMIT)))
            return
        how = (self._decoding.temperature, self._decoding.top_p, list(sampler.ends))
        try:
            ids, logprobs = await self._server.sample(self._connection, Ask(self._name, request.ids, limit, seed, *how))
        except VllmTrouble as trouble:
            self._answers.put(trouble)
        except Exception as error:  # a bug in this code: pass it on, or the waiting thread would wait for ever
            self._answers.put(VllmTrouble(f"{type(error).__name__}: {error}"))
        else:
            self._answers.put((request.episode, cut_turn(request, ids, logprobs, sampler.ends, sampler.context)))

    def _wait(self, ready: Callable[[], bool]) -> list[Answer]:
        """Wait for the next answer and return it in a list. Return an empty list if `ready()` is True before."""
        silent = 0.0
        while not ready():
            patience = SILENCE_S if ready is always_false else LOOK_S
            try:
                return [self._answers.get(timeout=patience)]
            except queue.Empty:
                silent += patience
            if silent >= SILENCE_S:
                silent = 0.0
                try:
                    self._server.check_health()
                except VllmTrouble as trouble:
                    raise self._server_error(trouble) from trouble
        return []

    async def _end(self) -> None:
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connection.close()

    def _server_error(self, trouble: VllmTrouble) -> UserError:
        return server_failure("vllm.url", self._server.url, trouble)


def seed_of(origin: str, episode: int, turn: int) -> int:
    """Return the seed of one turn, in [0, 2^32)."""
    return int.from_bytes(hashlib.sha256(f"{origin} {episode} {turn}".encode()).digest()[:4], "big")
