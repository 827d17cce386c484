"""Keep verdicts on disk, keyed by their content. A verdict that was paid for is never asked for again.

The cache is one SQLite file. A verdict and its cost are written in one transaction, so a process killed at any moment
leaves both or neither. Many threads and processes may share the file; the first score of a key stays. A reply without a
score is stored for the reader, and the next run asks again. The file also says which judge (model, server, settings,
rubrics) gave or reused each verdict, so two judges with the same model name stay apart.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.core.errors import UserError
from agentrl.core.judge import JudgeRequest

_TABLES = """
CREATE TABLE IF NOT EXISTS verdicts (
  key TEXT PRIMARY KEY, model TEXT NOT NULL, side TEXT NOT NULL, prompt TEXT NOT NULL, response TEXT NOT NULL,
  score REAL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spending (
  payer TEXT PRIMARY KEY, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, cost REAL NOT NULL);
CREATE TABLE IF NOT EXISTS judges (label TEXT PRIMARY KEY, about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS asked (
  judge TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (judge, key)) WITHOUT ROWID;
"""
_SELECT = "SELECT model, side, prompt, response, score, reply FROM verdicts"
_UNLINKED = "key NOT IN (SELECT key FROM asked)"


@dataclass(frozen=True)
class Usage:
    """What calls to a judge used. `cost` is in the currency of the configured prices."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class JudgeIdentity:
    """Everything that determines the verdicts of a judge. Two judges with equal identities are the same judge."""

    model: str
    settings: dict[str, Any]  # server or weights, sampling, retries
    rubrics: dict[str, str]  # side -> text

    @property
    def label(self) -> str:
        """The model's name and six digits of a digest of the rest. A user names the judge by it."""
        content = json.dumps([self.model, self.settings, self.rubrics], sort_keys=True)
        return f"{self.model}#{_digest(content)[:6]}"

    @property
    def about(self) -> str:
        """The settings in words. A rubric is shown by the first digits of its digest."""
        settings = ", ".join(f"{name}={value}" for name, value in sorted(self.settings.items()) if value is not None)
        return ", ".join([settings, *(f"{side} rubric {_digest(text)[:6]}" for side, text in self.rubrics.items())])


@dataclass(frozen=True)
class Entry:
    """A recorded verdict. `score` is None where the judge's replies could not be parsed."""

    model: str
    request: JudgeRequest
    score: float | None
    reply: str


def content_key(model: str, messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    """Return the SHA-256 of everything that determines a reply: model, rubric, texts (as messages), sampling."""
    return _digest(json.dumps([model, messages, settings], sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class VerdictCache:
    """The cache file at `path`. The file and its folder are created if they do not exist.

    Raises:
        UserError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            with suppress(sqlite3.OperationalError):  # older versions made WAL files, and another process has it open
                self._database.execute("PRAGMA journal_mode=DELETE")  # several machines may share the file
            # survives kill -9; a power cut may lose the last verdicts
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"judge.cache={path} cannot be used ({error}); name a new file in a writable directory"
            ) from error

    def get(self, key: str) -> Entry | None:
        """Return the verdict of `key`, if one with a score is recorded."""
        with self._lock:
            row = self._database.execute(f"{_SELECT} WHERE key = ? AND score IS NOT NULL", (key,)).fetchone()
        return None if row is None else _entry(row)

    def put(self, key: str, entry: Entry, payer: str, usage: Usage, judge: JudgeIdentity | None = None) -> None:
        """Record a verdict of `judge` and what it cost `payer`.

        A key that has a score keeps it. The cost counts in any case.
        """
        row = (key, entry.model, entry.request.side, entry.request.prompt, entry.request.response, entry.score)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "score = excluded.score, reply = excluded.reply WHERE verdicts.score IS NULL",
                (*row, entry.reply),
            )
            _spend(database, payer, usage)
            if judge is not None:
                _link(database, judge, [key])

    def reuse(self, keys: list[str], judge: JudgeIdentity) -> None:
        """Record that `judge` would have given the verdicts of `keys`, which another run paid for."""
        if keys:
            with self._transaction() as database:
                _link(database, judge, keys)

    def spend(self, payer: str, usage: Usage) -> None:
        """Record the cost of a call that gave no verdict."""
        with self._transaction() as database:
            _spend(database, payer, usage)

    def spent(self, payer: str) -> Usage:
        """Return everything that `payer` has spent, earlier processes included."""
        with self._lock:
            row = self._database.execute(
                "SELECT requests, prompt_tokens, completion_tokens, cost FROM spending WHERE payer = ?", (payer,)
            ).fetchone()
        return Usage() if row is None else Usage(*row)

    def judges(self) -> dict[str, str]:
        """Map the label of every judge with verdicts here to its settings in words.

        Verdicts of releases that did not record the judge appear under the model's name alone.
        """
        with self._lock:
            known = self._database.execute(
                "SELECT label, about FROM judges WHERE label IN (SELECT judge FROM asked)"
            ).fetchall()
            unknown = self._database.execute(f"SELECT DISTINCT model FROM verdicts WHERE {_UNLINKED}").fetchall()
        return dict(sorted([*known, *((model, "settings not recorded") for (model,) in unknown)]))

    def entries(self, judge: str | None = None) -> list[Entry]:
        """Return every recorded verdict, or those of the `judge` with that label, ordered by key."""
        where = f"WHERE key IN (SELECT key FROM asked WHERE judge = :judge) OR (model = :judge AND {_UNLINKED})"
        where = "" if judge is None else where
        with self._lock:
            rows = self._database.execute(f"{_SELECT} {where} ORDER BY key", {"judge": judge}).fetchall()
        return [_entry(row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._database:  # commits, or rolls back on an error
                    self._database.execute("BEGIN IMMEDIATE")
                    yield self._database
            except sqlite3.OperationalError as error:  # disk full, file system read-only, locked for a minute
                raise UserError(
                    f"{self.path} cannot be written ({error}); make room or give another judge.cache"
                ) from error


def open_cache(path: str | Path) -> VerdictCache:
    """Open a cache that must exist.

    Raises:
        UserError: there is no such file, or it is not a cache.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"{path}: no such file; name the judge.cache of a run")
    return VerdictCache(path)


def choose_entries(cache: VerdictCache, name: str | None, key: str) -> list[Entry]:
    """Return the verdicts of one judge: of the judge called `name`, or of the only judge in the cache.

    `name` is a label, or a model's name if only one judge of that model is there. `key` is what the user sets to
    choose.

    Raises:
        UserError: there is no judge of that name, or there are several to choose from.
    """
    judges = cache.judges()
    if not judges:
        raise UserError(f"{cache.path} holds no verdict; name the judge.cache of a run that asked a judge")
    meant = [label for label in judges if name in (None, label)] or [
        label for label in judges if label.rpartition("#")[0] == name
    ]
    if len(meant) == 1:
        return cache.entries(meant[0])
    choices = meant or list(judges)
    told = "; ".join(f"{label} is {judges[label]}" for label in choices if "#" in label)
    described = f" ({told})" if told else ""
    if not meant:
        raise UserError(f"{key}={name}: {cache.path} holds verdicts of {', '.join(choices)}{described}")
    raise UserError(
        f"{cache.path} holds verdicts of {', '.join(choices)}; choose one with {key}={choices[0]}{described}"
    )


def _link(database: sqlite3.Connection, judge: JudgeIdentity, keys: list[str]) -> None:
    database.execute("INSERT OR IGNORE INTO judges VALUES (?, ?)", (judge.label, judge.about))
    database.executemany("INSERT OR IGNORE INTO asked VALUES (?, ?)", [(judge.label, key) for key in keys])


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
