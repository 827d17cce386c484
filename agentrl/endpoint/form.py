"""The form of a request: the parameters that a server accepts, learnt from its refusals.

vLLM and SGLang accept `top_k`, `min_p` and `repetition_penalty`; if these are missing, they use the generation_config
of the checkpoint. OpenAI's own API refuses them. Some models refuse `max_tokens`, and some refuse `temperature`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from agentrl.chat.format import THINKING_ARGUMENTS
from agentrl.core.engine import Decoding

Messages = list[dict[str, Any]]
EXTRAS = ("repetition_penalty", "min_p", "top_k")  # not part of OpenAI's protocol
SAMPLING = ("temperature", "top_p", *EXTRAS)
REASONING = ("reasoning_content", "reasoning")
COLDEST = 0.01  # replaces temperature 0 for a server that needs a value above 0
POSITIVE = re.compile(r"positive|greater than|above 0|> ?0|\(0")
TOO_LARGE = re.compile(r"too (large|long|high|many|big)|exceed|at most|maximum|must be (less|smaller|<)|\d+ > \d+")


@dataclass(frozen=True)
class Form:
    """The parameters to send and their names. `without` are refused parameters, whose values the server chooses."""

    limit: str | None = "max_tokens"  # name of the token limit; None sends no limit
    top_k_off: int = -1  # value that turns top_k off; some servers need 0
    coldest: float = 0.0
    system: str = "system"  # role of system messages; newer models of OpenAI need "developer"
    without: frozenset[str] = frozenset()
    thinking: bool | None = None  # vLLM and SGLang pass it to the chat template, which ignores unknown names

    def sampling(self, decoding: Decoding) -> dict[str, float]:
        """Return every sampling value to send."""
        values = {
            "temperature": max(decoding.temperature, self.coldest),
            "top_p": decoding.top_p,
            "top_k": self.top_k_off,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        return {name: value for name, value in values.items() if name not in self.without}

    def body(self, messages: Messages, tools: Messages, budget: int, decoding: Decoding) -> dict[str, Any]:
        """Make the request, without the model's name."""
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

    def milder_forms(self, words: str, body: dict[str, Any], proven: set[str]) -> Iterator[Form]:
        """Yield the forms to try after the server refused `body` with `words`, the likeliest first.

        `proven` are parameters that the server accepted before.
        """
        named = self.parameters_named_in(words, body)
        if self.limit in named:
            if TOO_LARGE.search(words):  # the context has less room; without a limit the server uses all of it
                yield replace(self, limit=None)
            elif self.limit == "max_tokens":
                yield replace(self, limit="max_completion_tokens")
        if "top_k" in named and self.top_k_off == -1:
            yield replace(self, top_k_off=0)
        if refused := named & set(EXTRAS):
            yield self._without(*refused)
        if "temperature" in named and body["temperature"] == 0 and POSITIVE.search(words):
            yield replace(self, coldest=COLDEST)
        for name in ("top_p", "temperature"):  # if both are named, leaving out one may be enough
            if name in named:
                yield self._without(name)
        if "reasoning" in words and any(key in one for one in body["messages"] for key in REASONING):
            yield self._without(*REASONING)
        if self.system == "system" and re.search(r"\b(system|developer)\b", words) and _has_system(body):
            yield replace(self, system="developer")
        if not named and any(name in body and name not in proven for name in EXTRAS):  # the server may not name it
            yield self._without(*EXTRAS)

    def parameters_named_in(self, words: str, body: dict[str, Any]) -> set[str]:
        """Return the parameters of `body` that a refusal names."""
        names = (*SAMPLING, self.limit or "")
        return {name for name in names if name in body and re.search(rf"\b{name}\b", words)}

    def _without(self, *names: str) -> Form:
        return replace(self, without=self.without | set(names))


def _has_system(body: dict[str, Any]) -> bool:
    return any(message["role"] == "system" for message in body["messages"])
