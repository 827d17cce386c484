"""How a judge is asked, and how its reply is read: by a rubric, or by the fixed prompt of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agentrl.core.judge import JudgeRequest

Messages = list[dict[str, str]]


class Unparsable(ValueError):
    """A reply that is not what was asked for. The message says what is wrong with it."""


@dataclass(frozen=True)
class Form:
    """What all requests to a judge share.

    `write` gets the strings that the judge's tokenizer may read as control tokens. `read` returns a score in [0, 1], or
    raises Unparsable.
    """

    texts: Mapping[str, str]  # part of the judge's identity: rubrics or prompts
    write: Callable[[JudgeRequest, Iterable[str]], Messages]
    read: Callable[[str, JudgeRequest], float]
    json: bool = True  # the reply is one JSON object, and a reply that is not is asked for again
    raw: bool = False  # the one message is the whole text that the model continues, without a chat template
    begins: bool = True  # a tokenizer puts its first token (<s>) before a raw text
    max_tokens: int | None = None  # longest reply; None takes the key of the judge
    clip: int | None = None  # tokens of the judged response that a judge in this process reads
