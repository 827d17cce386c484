"""Reads the response of a chat-completions server strictly: returns an answer with checked types, or raises the reason.

Servers and proxies send error bodies with status 200, web pages, streams and choices that are null. The client library
does not check them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from agentrl.core.text import replace_surrogates

LONGEST = 300  # characters of a server's words to quote
TEXT_PARTS = ("text", "output_text", "refusal")
THOUGHT_PARTS = ("thinking", "reasoning")
GIVEN_UP = ("content_filter", "error", "abort")  # finish reasons of a text that is not the model's answer


class NoAnswer(Exception):
    """The response is not a chat completion. The message quotes the server.

    `status` is the HTTP status that the body names while the real status is 200. `final` means that the same request
    would be refused again (a content filter).
    """

    def __init__(self, reason: str, status: int | None = None, final: bool = False) -> None:
        super().__init__(reason)
        self.status, self.final = status, final


@dataclass(frozen=True)
class Answer:
    """One choice of a completion."""

    content: str
    calls: list[tuple[str, Any]] = field(default_factory=list)  # name and arguments as the server sent them
    reasoning: str = ""
    reasoning_key: str | None = None  # the server's name for the reasoning
    finish: str = "stop"
    usage: dict[str, int] = field(default_factory=dict)  # prompt and completion tokens, if the server counts them


def read_answer(text: str, content_type: str = "", plain: bool = False) -> Answer:
    """Read the body of a response with status 200. Raises NoAnswer.

    `plain` says that a text was to be continued (/completions), so that a choice has a text and no message.
    """
    body = _json(text, content_type)
    choices = body.get("choices")
    if not choices and (complaint := complaint_of(body)):
        raise NoAnswer(complaint, status_of(body))
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoAnswer(f"the answer has no choices: {shorten(text)}")
    choice = choices[0]
    if isinstance(choice.get("error"), dict | str):
        raise NoAnswer(complaint_of(choice) or "the choice is an error", status_of(choice))
    message = (
        {"content": choice.get("text")} if plain and isinstance(choice.get("text"), str) else choice.get("message")
    )
    if not isinstance(message, dict):
        raise NoAnswer(f"the choice has no message: {shorten(json.dumps(choice))}")
    content, thought = _content(message.get("content"))
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) else "stop"
    refusal = message.get("refusal") if isinstance(message.get("refusal"), str) else ""
    if finish in GIVEN_UP:
        words = f": {shorten(refusal or content)}" if refusal or content else ""
        raise NoAnswer(f"the server ended the answer (finish_reason {finish}){words}", final=finish == "content_filter")
    key = next((name for name in ("reasoning_content", "reasoning") if isinstance(message.get(name), str)), None)
    return Answer(
        content=content or refusal or "",
        calls=_calls(message),
        reasoning=(message[key] if key else "") or thought,
        reasoning_key=key if key and message[key].strip("\n") else None,
        finish=finish,
        usage=_usage(body.get("usage")),
    )


def refusal_words(text: str, content_type: str = "") -> str:
    """Return the server's words in the body of an error response, in one line."""
    try:
        body = _json(text, content_type)
    except NoAnswer as what:
        plain = text.strip() and not text.lstrip().startswith(("<", "{", "[")) and "html" not in content_type
        return shorten(text) if plain else str(what)
    return complaint_of(body) or shorten(text)


def complaint_of(body: dict[str, Any]) -> str:
    """Return the error message of a body, in any of the forms that servers use. Empty if there is none."""
    error = body.get("error")
    if isinstance(error, dict):
        words = _text(error.get("message")) or _text(error)
        raw = (error.get("metadata") or {}).get("raw") if isinstance(error.get("metadata"), dict | None) else None
        return shorten(f"{words} ({_text(raw)})" if raw else words)
    if error:
        return shorten(_text(error))
    if isinstance(body.get("detail"), list):  # FastAPI lists the fields and their faults
        entries = [one for one in body["detail"] if isinstance(one, dict)]
        told = [f"{'.'.join(map(str, one.get('loc') or []))}: {_text(one.get('msg'))}" for one in entries]
        return shorten("; ".join(told)) or shorten(_text(body["detail"]))
    return shorten(_text(body.get("message") or body.get("detail")))


def status_of(body: dict[str, Any]) -> int | None:
    """Return the HTTP status that an error body names. None if it names none."""
    error = body.get("error")
    for place in (error if isinstance(error, dict) else {}, body):
        for key in ("code", "status", "status_code"):
            if re.fullmatch(r"[45]\d\d", str(place.get(key))):  # some write it as a string
                return int(place[key])
    return None


def shorten(text: str) -> str:
    """Shorten a server's text to one line of at most LONGEST characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _json(text: str, content_type: str) -> dict[str, Any]:
    text = text.removeprefix("\ufeff")
    start = text.lstrip()[:500]
    if not start:
        raise NoAnswer("the answer is empty")
    if "event-stream" in content_type or start.startswith(("data:", "event:")):
        raise NoAnswer("the server streams its answer, although the request says stream=false")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        if "html" in content_type or start[:1] == "<":
            raise NoAnswer(f"the answer is a web page{_page_title(text)}") from None
        raise NoAnswer(f"the answer is broken JSON: {shorten(text)}") from None
    if not isinstance(body, dict):
        raise NoAnswer(f"the answer is not a JSON object: {shorten(text)}")
    return dict(replace_surrogates(body))


def _page_title(page: str) -> str:
    words = re.search(r"<(title|h1)[^>]*>(.*?)</\1>", page, re.IGNORECASE | re.DOTALL)
    told = words[2] if words else re.sub(r"<[^>]*>", " ", page)
    return f" ({shorten(told)})" if told.strip() else ""


def _content(content: Any) -> tuple[str, str]:
    """Return the text and the reasoning of a message's content, which may come in parts."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list) or not all(isinstance(part, dict | str) for part in content):
        raise NoAnswer(f"the message's content is not text: {shorten(_text(content))}")
    text, thought = [], []
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if kind in TEXT_PARTS:
            text.append(part if isinstance(part, str) else _text(part.get("text") or part.get("refusal")))
        elif kind in THOUGHT_PARTS:
            thought.append("".join(_content(part.get("thinking") or part.get("text"))))
        else:
            raise NoAnswer(f"the message's content has a part of type {kind}, which is not text")
    return "".join(text), "".join(thought)


def _calls(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the name and the arguments of every call, also in the older form (`function_call`)."""
    made = message.get("tool_calls")
    if not made:
        made = [{"function": message["function_call"]}] if message.get("function_call") else []
    if not isinstance(made, list):
        raise NoAnswer(f"tool_calls is not a list: {shorten(_text(made))}")
    calls = []
    for call in made:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise NoAnswer(f"a tool call names no function: {shorten(json.dumps(call))}")
        name = function.get("name")
        calls.append((name if isinstance(name, str) else "", function.get("arguments")))
    return calls


def _usage(usage: Any) -> dict[str, int]:
    counts = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return {name: counts[name] for name in names if type(counts.get(name)) is int and counts[name] >= 0}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
