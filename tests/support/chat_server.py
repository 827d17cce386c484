"""A chat-completions server on loopback whose answers a test makes, and that keeps account of what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What goes over the wire: a body as text, bytes or JSON.

    `cut` closes the connection in the middle of it; `dribble` sends a blank every 0.05 s in its place, for so long.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    dribble: float = 0.0


class ChatServer:
    """`respond(body, number)` makes the answer to the number-th request, from 1, or returns a `Reply`."""

    def __init__(self, respond: Callable[[dict[str, Any], int], Any], models: Any = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.respond = respond
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(Reply({"error": "no such route"}, 404) if models is None else Reply(models))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                made = Reply({"error": {"message": "no such path"}}, 404)
                if self.path == "/v1/chat/completions":
                    made = outer.respond(body, number)
                self.answer(made if isinstance(made, Reply) else Reply(made))

            def answer(self, reply: Reply) -> None:
                data = reply.body if isinstance(reply.body, bytes | str) else json.dumps(reply.body)
                data = data.encode() if isinstance(data, str) else data
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                if reply.dribble:
                    self.send_header("Connection", "close")
                else:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                end = time.monotonic() + reply.dribble
                while time.monotonic() < end:
                    self.wfile.write(b" ")
                    time.sleep(0.05)
                self.wfile.write(data[: len(data) // 2] if reply.cut else data)
                self.close_connection = self.close_connection or reply.cut

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # clients that give up reset their connections
                """Quiet."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(message: Any, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A whole chat completion around `message`."""
    choice = {"index": 0, "finish_reason": finish, "message": message}
    usage = {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | more


def said(content: Any, *calls: Any, **more: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


def call(name: Any, arguments: Any, **more: Any) -> dict[str, Any]:
    """A call as servers send it."""
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}} | more
