"""What all judges that are language models share: content keys, the cache, one question for equal requests, counts."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.core.judge import JudgeRequest, Verdict
from agentrl.judges.cache import Entry, JudgeIdentity, Usage, VerdictCache, content_key
from agentrl.judges.form import Form, Messages, Unparsable


@dataclass(frozen=True)
class Question:
    """A request in the form in which the model gets it. Equal questions share a key."""

    key: str
    request: JudgeRequest
    messages: Messages


class RubricJudge(ABC):
    """A judge that grades by a rubric, or classifies by a fixed prompt. Subclasses say how questions are asked.

    `settings` holds what determines a reply besides model and messages. `control_tokens` are strings that the judge's
    tokenizer may read as control tokens, in addition to the usual spellings.
    """

    control_tokens: frozenset[str] = frozenset()

    def __init__(
        self,
        name: str,
        form: Form,
        settings: dict[str, Any],
        parse_retries: int,
        cache: VerdictCache,
        payer: str,
    ):
        self.name = name
        self.cache = cache
        self.form = form
        # the same question to the same model, asked again without a hint, would get the same reply
        self.tries = parse_retries + 1 if form.json else 1
        self._settings = {**settings, "parse_retries": self.tries - 1}
        self.identity = JudgeIdentity(name, self._settings, dict(form.texts))
        self._unreadable: dict[str, Verdict] = {}  # the next run asks these again, this run does not
        self._payer = payer
        # a file for the totals; it is not part of the metrics, which a resumed run repeats exactly
        self.log: Path | None = None
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def score(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """See `Judge.score`."""
        questions = [self._question(request) for request in requests]
        known: dict[str, Verdict] = {}
        pending: dict[str, Question] = {}
        for question in questions:
            if question.key in known or question.key in pending:
                continue
            entry = self.cache.get(question.key)
            if entry is not None:
                known[question.key] = Verdict(entry.score, entry.reply)
            elif question.key in self._unreadable:
                known[question.key] = self._unreadable[question.key]
            else:
                pending[question.key] = question
        self.cache.reuse(list(known), self.identity)
        with self._lock:
            self._counts["cached"] += sum(question.key in known for question in questions)
        try:
            known.update(self._ask_all(list(pending.values())))
            verdicts = [known[question.key] for question in questions]
            with self._lock:
                self._counts["verdicts"] += len(verdicts)
                self._counts["missing"] += sum(verdict.score is None for verdict in verdicts)
            return verdicts
        finally:
            self._write_log()

    def _write_log(self) -> None:
        """Write the totals so far as one line: those of this process, and what the run has spent in all."""
        if self.log is not None:
            spent = {f"spent_{name}": value for name, value in vars(self.cache.spent(self._payer)).items()}
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**self.counts(), **spent}) + "\n")

    def counts(self) -> dict[str, float]:
        """Return the counts of this process.

        `verdicts` given, of which `cached` came from the disk and `missing` have no score; `requests` answered,
        `retries`, tokens and cost.
        """
        names = ("verdicts", "cached", "missing", "requests", "retries", "prompt_tokens", "completion_tokens", "cost")
        with self._lock:
            return {name: self._counts[name] for name in names}

    @abstractmethod
    def _ask_all(self, questions: list[Question]) -> dict[str, Verdict]:
        """Return a verdict for each question's key. Each is recorded in the cache as soon as it is known."""

    def _question(self, request: JudgeRequest) -> Question:
        asked = self.form.write(request, self.control_tokens)
        return Question(content_key(self.name, asked, self._settings), request, asked)

    def _read(self, question: Question, reply: str, usage: Usage, last: bool) -> tuple[Verdict | None, Messages]:
        """Return the verdict in a reply and record it; or return None and the messages to ask next.

        The `last` reply is recorded as missing if it cannot be read: the next run asks again, this run does not.
        """
        try:
            score: float | None = self.form.read(reply, question.request)
        except Unparsable as error:
            if not last:
                self.cache.spend(self._payer, usage)
                self._count(usage, retries=1)
                return None, [*question.messages, *_correction(reply, error)]
            score = None
        entry = Entry(self.name, question.request, score, reply)
        self.cache.put(question.key, entry, self._payer, usage, self.identity)
        self._count(usage)
        verdict = Verdict(score, reply)
        if score is None:
            self._unreadable[question.key] = verdict
        return verdict, []

    def _count(self, usage: Usage = Usage(), **more: int) -> None:  # noqa: B008 (frozen)
        with self._lock:
            self._counts.update({**vars(usage), **more})


def _correction(reply: str, error: Unparsable) -> Messages:
    """Return messages that ask for a readable reply. Without them, a judge at temperature 0 would repeat itself."""
    return [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": f"That could not be read: {error}. Reply again with the one JSON object alone."},
    ]
