"""The form of a request: the parameters that a server takes, learnt from what it refuses.

vLLM and SGLang take `top_k`, `min_p` and `repetition_penalty`, and apply the checkpoint's generation_config where they
are not given; OpenAI's own API refuses them. Some models take no `max_tokens`, some no `temperature`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from agentrl.chat.format import THINKING_ARGUMENTS
from agentrl.core.engine import Decoding

Messages = list[dict[str, Any]]
EXTRAS = ("repetition_penalty", "min_p", "top_k")  # no part of OpenAI's protocol
SAMPLING = ("temperature", "top_p", *EXTRAS)
REASONING = ("reasoning_content", "reasoning")
COLDEST = 0.01  # temperature for a server that takes everything above 0
POSITIVE = re.compile(r"positive|greater than|above 0|> ?0|\(0")
TOO_LARGE = re.compile(r"too (large|long|high|many|big)|exceed|at most|maximum|must be (less|smaller|<)|\d+ > \d+")


@dataclass(frozen=True)
class Form:
    """What is sent, and under which names. `without` are keys that the server refuses: it chooses those values."""

    limit: str | None = "max_tokens"  # name of the token limit; None sends none
    top_k_off: int = -1  # some write 0
    coldest: float = 0.0
    system: str = "system"  # role of system messages: newer models of OpenAI say developer
    without: frozenset[str] = frozenset()
    thinking: bool | None = None  # vLLM and SGLang hand the switch to the chat template, which ignores unknown names

    def sampling(self, decoding: Decoding) -> dict[str, float]:
        """Every sampling value that is sent."""
        values = {
            "temperature": max(decoding.temperature, self.coldest),
            "top_p": decoding.top_p,
            "top_k": self.top_k_off,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        return {name: value for name, value in values.items() if name not in self.without}

    def body(self, messages: Messages, tools: Messages, budget: int, decoding: Decoding) -> dict[str, Any]:
        """The request without the model's name."""
        body: dict[str, Any] = {"messages": [self._message(one) for one in messages], **self.sampling(decoding)}
        if tools:
            body["tools"] = tools
        if self.limit is not None:
            body[self.limit] = budget
        if self.thinking is not None:
            body["chat_template_kwargs"] = dict.fromkeys(THINKING_ARGUMENTS, self.thinking)
        return body

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in message.items() if key not in self.without}
        return kept | {"role": self.system} if message["role"] == "system" else kept

    def milder(self, words: str, body: dict[str, Any], proven: set[str]) -> Iterator[Form]:
        """Forms worth trying after the server refused `body` with `words`, the likeliest first.

        It has taken the parameters `proven` before.
        """
        named = self.parameters_named_in(words, body)
        if self.limit in named:
            if TOO_LARGE.search(words):  # the context has less room: the server's own limit is what is left of it
                yield replace(self, limit=None)
            elif self.limit == "max_tokens":
                yield replace(self, limit="max_completion_tokens")
        if "top_k" in named and self.top_k_off == -1:
            yield replace(self, top_k_off=0)
        if refused := named & set(EXTRAS):
            yield self._without(*refused)
        if "temperature" in named and body["temperature"] == 0 and POSITIVE.search(words):
            yield replace(self, coldest=COLDEST)
        for name in ("top_p", "temperature"):  # where both are named, one of them alone may do
            if name in named:
                yield self._without(name)
        if "reasoning" in words and any(key in one for one in body["messages"] for key in REASONING):
            yield self._without(*REASONING)
        if self.system == "system" and re.search(r"\b(system|developer)\b", words) and _has_system(body):
            yield replace(self, system="developer")
        if not named and any(name in body and name not in proven for name in EXTRAS):  # not every server names it
            yield self._without(*EXTRAS)

    def parameters_named_in(self, words: str, body: dict[str, Any]) -> set[str]:
        """The parameters of `body` that a refusal speaks of."""
        names = (*SAMPLING, self.limit or "")
        return {name for name in names if name in body and re.search(rf"\b{name}\b", words)}

    def _without(self, *names: str) -> Form:
        return replace(self, without=self.without | set(names))


def _has_system(body: dict[str, Any]) -> bool:
    return any(message["role"] == "system" for message in body["messages"])
