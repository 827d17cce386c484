"""A dialogue with a server: what is recorded of it, and what goes back.

What goes back must render to the very text that the model sampled, whatever the server cut it into: chat templates of
the Qwen and Hermes kind write the newline before a call, and those around reasoning, themselves. It must also be
valid where the model's call was not: strict servers refuse a request whose earlier arguments are no JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentrl.chat.reading import assistant_message, read_turn
from agentrl.core.text import well_formed
from agentrl.endpoint.answer import Answer

Message = dict[str, Any]
Reader = Callable[[str], Message]  # the text of a turn, in which the server left its calls
BAD_ARGUMENTS = "invalid_arguments"  # under this name goes back what a model wrote in place of arguments
NAMELESS = "unnamed"
NESTED = 3  # how often arguments may be JSON in a string of JSON


def read_message(answer: Answer, read: Reader = read_turn) -> Message:
    """An answer as an assistant message whose calls are parsed, by the server or by `read`.

    Arguments that are no JSON object stay as they are: executing them is an error the model gets to read.
    """
    if answer.calls:
        calls = [(name, read_arguments(arguments)) for name, arguments in answer.calls]
        message = assistant_message(answer.content.strip(), calls)
    else:
        message = read(answer.content)
    if reasoning := answer.reasoning.strip("\n"):
        message |= {"content": message["content"].lstrip("\n"), "reasoning_content": reasoning}
    return message


def read_arguments(sent: Any) -> Any:
    """Arguments as a server sends them: JSON text, an object, and for a tool without any also nothing or null."""
    value = sent
    for _ in range(NESTED):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            break
    value = {} if value is None else value
    return well_formed(value if isinstance(value, dict | list) else sent)


class Dialogue:
    """Everything said after the prompt: `said` for the record, `sent` as the protocol wants it back.

    With history "text" an assistant turn goes back as the text that Qwen's and Hermes' templates make of it: some
    servers, transformers' own among them, drop what a turn says beside its calls when the calls are structured.
    """

    def __init__(self, history: str, read: Reader = read_turn) -> None:
        self.said: list[Message] = []
        self.sent: list[Message] = []
        self._history, self._read = history, read
        self._open: list[str] = []  # ids of the calls whose results are to come

    def add_answer(self, answer: Answer) -> Message:
        """Take a turn of the model; returns its record."""
        message = read_message(answer, self._read)
        calls = [call["function"] for call in message.get("tool_calls") or []]
        # The server's own ids may be empty or alike.
        self._open = [f"call_{len(self.said)}_{place}" for place in range(len(calls))]
        # Calls that the server left in the text are rendered as they stand there.
        content = answer.content.lstrip("\n") if answer.reasoning else answer.content
        back: Message = {"role": "assistant", "content": content}
        if answer.reasoning_key is not None:
            back[answer.reasoning_key] = message["reasoning_content"]
        if answer.calls:
            back["content"] = content.removesuffix("\n")
            if self._history == "text":
                back["content"] += "".join(map(_as_block, calls))
            else:
                back["tool_calls"] = [
                    {"id": name, "type": "function", "function": _as_sent(call)}
                    for name, call in zip(self._open, calls, strict=True)
                ]
        self.said.append(message)
        self.sent.append(back)
        return message

    def heard(self, messages: list[Message]) -> None:
        """Take what the environment says: results of the calls in their order, or the user's next message."""
        for message in messages:
            back = {key: message[key] for key in ("role", "content")}
            if message["role"] == "tool":
                back["tool_call_id"] = self._open.pop(0)
            self.said.append(message)
            self.sent.append(back)

    def unheard(self) -> None:
        """Take back what the environment said last."""
        while self.said and self.said[-1]["role"] != "assistant":
            self.said.pop()
            self.sent.pop()


def _as_block(call: Message) -> str:
    return f'\n<tool_call>\n{{"name": "{call["name"]}", "arguments": {_json_text(call)}}}\n</tool_call>'


def _as_sent(call: Message) -> dict[str, str]:
    return {"name": call["name"] or NAMELESS, "arguments": _json_text(call)}


def _json_text(call: Message) -> str:
    """The arguments of a call as the text of a JSON object, whatever the model wrote."""
    arguments = call["arguments"]
    if isinstance(arguments, dict):
        try:
            return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except ValueError:  # NaN and infinities are no JSON
            arguments = json.dumps(arguments, ensure_ascii=False)
    return json.dumps({BAD_ARGUMENTS: arguments}, ensure_ascii=False)
