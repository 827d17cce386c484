"""Verdicts on disk, keyed by content: what was paid for once is never asked again, whoever asks and whatever died.

One SQLite file. A verdict and what it cost are one transaction, so a kill at any moment leaves both or neither; many
threads and processes may share the file, and the first verdict of a key stays.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import UserError
from agentrl.judges.base import JudgeRequest

_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
  key TEXT PRIMARY KEY, model TEXT NOT NULL, side TEXT NOT NULL, prompt TEXT NOT NULL, response TEXT NOT NULL,
  score REAL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spending (
  payer TEXT PRIMARY KEY, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, cost REAL NOT NULL);
"""


@dataclass(frozen=True)
class Usage:
    """What calls to a judge took. `cost` is in the currency of the configured prices."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Entry:
    """A recorded verdict. `score` is None where the judge's replies could not be parsed."""

    model: str
    request: JudgeRequest
    score: float | None
    reply: str


def content_key(model: str, messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    """SHA-256 of all that decides a reply: model, rubric and texts (as messages), sampling settings."""
    return hashlib.sha256(json.dumps([model, messages, settings], sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """The file at `path`, created with its folder where absent.

    Raises:
        UserError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; a power cut loses the last verdicts
            self._database.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"judge.cache={path} cannot be used ({error}); give a writable file of its own") from error

    def get(self, key: str) -> Entry | None:
        """The verdict of `key`, if recorded."""
        with self._lock:
            row = self._database.execute(
                "SELECT model, side, prompt, response, score, reply FROM verdicts WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else _entry(row)

    def put(self, key: str, entry: Entry, payer: str, usage: Usage) -> None:
        """Record a verdict with what it cost `payer`. A key that is there keeps its verdict; the cost counts anyway."""
        row = (key, entry.model, entry.request.side, entry.request.prompt, entry.request.response, entry.score)
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, entry.reply))
            _spend(database, payer, usage)

    def spend(self, payer: str, usage: Usage) -> None:
        """Record what a call without a verdict cost."""
        with self._transaction() as database:
            _spend(database, payer, usage)

    def spent(self, payer: str) -> Usage:
        """All that `payer` has spent, earlier processes included."""
        with self._lock:
            row = self._database.execute(
                "SELECT requests, prompt_tokens, completion_tokens, cost FROM spending WHERE payer = ?", (payer,)
            ).fetchone()
        return Usage() if row is None else Usage(*row)

    def entries(self) -> list[Entry]:
        """Every recorded verdict, in a fixed order (of keys)."""
        with self._lock:
            rows = self._database.execute(
                "SELECT model, side, prompt, response, score, reply FROM verdicts ORDER BY key"
            ).fetchall()
        return [_entry(row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._database:  # commits, or rolls back
                    self._database.execute("BEGIN IMMEDIATE")
                    yield self._database
            except sqlite3.OperationalError as error:  # disk full, file system read-only, locked for a minute
                raise UserError(
                    f"{self.path} cannot be written ({error}); make room or give another judge.cache"
                ) from error


def open_cache(path: str | Path) -> VerdictCache:
    """A cache that must be there already.

    Raises:
        UserError: no such file, or not a cache.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"{path}: no such file; give the judge.cache of a run")
    return VerdictCache(path)


def entries_of(cache: VerdictCache, model: str | None, key: str) -> list[Entry]:
    """Verdicts of one judge: of `model`, or of the only one there. `key` is what the user would set to choose.

    Raises:
        UserError: none of that name, or several to choose from.
    """
    entries = cache.entries()
    models = sorted({entry.model for entry in entries})
    if not models:
        raise UserError(f"{cache.path} holds no verdict")
    if model is None and len(models) > 1:
        raise UserError(f"{cache.path} holds verdicts of {', '.join(models)}; choose one with {key}=...")
    if model is not None and model not in models:
        raise UserError(f"{key}={model}: {cache.path} holds verdicts of {', '.join(models)}")
    return [entry for entry in entries if entry.model == (model or models[0])]


def _entry(row: tuple[Any, ...]) -> Entry:
    model, side, prompt, response, score, reply = row
    return Entry(model, JudgeRequest(side, prompt, response), score, reply)


def _spend(database: sqlite3.Connection, payer: str, usage: Usage) -> None:
    database.execute(
        "INSERT INTO spending VALUES (?, ?, ?, ?, ?) ON CONFLICT (payer) DO UPDATE SET "
        "requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
        "completion_tokens = completion_tokens + excluded.completion_tokens, cost = cost + excluded.cost",
        (payer, usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.cost),
    )
