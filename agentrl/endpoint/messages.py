"""A dialogue with a server: the messages to record, and the messages to send back.

The messages sent back must render to exactly the text that the model sampled, although the server has split it into
parts. Chat templates such as Qwen's and Hermes' write the newlines before a call and around reasoning themselves. The
messages must also be valid if the model's call was not: strict servers refuse a request with earlier arguments that
are not a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agentrl.chat.reading import assistant_message, read_turn
from agentrl.core.text import replace_surrogates
from agentrl.endpoint.answer import Answer

Message = dict[str, Any]
Reader = Callable[[str], Message]  # text of a turn, in which the server left the calls -> message
BAD_ARGUMENTS = "invalid_arguments"  # key under which invalid arguments are sent back
NAMELESS = "unnamed"
NESTED = 3  # how many times arguments may be JSON in a string of JSON


def read_message(answer: Answer, read: Reader = read_turn) -> Message:
    """Make an assistant message from an answer. The server or `read` parses its calls.

    Arguments that are not a JSON object stay as they are. The call then fails, and the model reads the error.
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
    """Read arguments as servers send them: JSON text or an object; nothing or null for a tool without arguments."""
    value = sent
    for _ in range(NESTED):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            break
    value = {} if value is None else value
    return replace_surrogates(value if isinstance(value, dict | list) else sent)


class Dialogue:
    """The messages after the prompt: `said` for the record, and `sent` in the form of the protocol.

    With history "text" the calls of an assistant turn are sent back as text, as Qwen's and Hermes' templates write
    them. Some servers, such as transformers' own, drop the words of a turn with structured calls.
    """

    def __init__(self, history: str, read: Reader = read_turn) -> None:
        self.said: list[Message] = []
        self.sent: list[Message] = []
        self._history, self._read = history, read
        self._open: list[str] = []  # ids of the calls that wait for their results

    def add_answer(self, answer: Answer) -> Message:
        """Add a turn of the model. Returns the message for the record."""
        message = read_message(answer, self._read)
        calls = [call["function"] for call in message.get("tool_calls") or []]
        # The server's own ids may be empty or equal.
        self._open = [f"call_{len(self.said)}_{place}" for place in range(len(calls))]
        # Calls that the server left in the text are sent back in the text.
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

    def add_observations(self, messages: list[Message]) -> None:
        """Add what the environment says: the results of the calls in their order, or the user's next message."""
        for message in messages:
            back = {key: message[key] for key in ("role", "content")}
            if message["role"] == "tool":
                back["tool_call_id"] = self._open.pop(0)
            self.said.append(message)
            self.sent.append(back)

    def remove_observations(self) -> None:
        """Remove what the environment said last."""
        while self.said and self.said[-1]["role"] != "assistant":
            self.said.pop()
            self.sent.pop()


def _as_block(call: Message) -> str:
    return f'\n<tool_call>\n{{"name": "{call["name"]}", "arguments": {_json_text(call)}}}\n</tool_call>'


def _as_sent(call: Message) -> dict[str, str]:
    return {"name": call["name"] or NAMELESS, "arguments": _json_text(call)}


def _json_text(call: Message) -> str:
    """Return the arguments of a call as the text of a JSON object, whatever the model wrote."""
    arguments = call["arguments"]
    if isinstance(arguments, dict):
        try:
            return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except ValueError:  # NaN and infinities are not JSON
            arguments = json.dumps(arguments, ensure_ascii=False)
    return json.dumps({BAD_ARGUMENTS: arguments}, ensure_ascii=False)
