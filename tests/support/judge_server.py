"""A chat-completions server on loopback that judges by rule, fails on purpose, and keeps account of what it served."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = re.compile(r"<<<(SYSTEM PROMPT|USER REQUEST|RESPONSE) (\w+)>>>\n(.*?)\n<<<END \1 \2>>>", re.DOTALL)


def honest(messages: list[dict[str, str]]) -> str:
    """A verdict that depends on the fenced texts alone, as a judge's would: 20 grades, told apart by a hash."""
    grade = expected(*(text for _, _, text in BLOCK.findall(messages[1]["content"])))
    return json.dumps({"score": grade})


def expected(prompt: str, response: str) -> float:
    return int(hashlib.sha256(f"{prompt}/{response}".encode()).hexdigest(), 16) % 21 / 20


class JudgeServer:
    """`reply(messages)` makes the content; a text to continue is one message with the role text.

    `fault(digest, attempt)` names what goes wrong with a request, if anything.
    Faults: 429, 500, timeout, cut_body (the connection ends early), cut_reply (the content is half a JSON object),
    prose, or any three digits. `served` counts complete answers by the digest of their messages, `asked` all requests.
    """

    def __init__(
        self,
        reply: Callable[[list[dict[str, str]]], str] = honest,
        fault: Callable[[str, int], str | None] = lambda digest, attempt: None,
        latency: float = 0.0,
        hang: float = 3.0,
        json_mode: bool = True,
    ):
        self.served: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda body: None  # a message for HTTP 400
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(404, {"error": {"message": "no such route"}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = body["messages"] if "messages" in body else [{"role": "text", "content": body["prompt"]}]
                first_two = json.dumps(asked[:2])  # the same question, however often it is put
                digest = hashlib.sha256(first_two.encode()).hexdigest()
                with outer.lock:
                    outer.bodies.append(body)
                    attempt = outer.asked[digest]
                    outer.asked[digest] += 1
                time.sleep(latency)
                if body.get("response_format") and not json_mode:
                    return self.answer(400, {"error": {"message": "response_format is not supported"}})
                if (message := outer.refuse(body)) is not None:
                    return self.answer(400, {"error": {"message": message}})
                what = fault(digest, attempt)
                if what:
                    with outer.lock:
                        outer.faults[what] += 1
                if what == "timeout":
                    time.sleep(hang)
                    self.close_connection = True
                    return None
                if what is not None and what.isdigit():
                    headers = {"Retry-After": "1"} if what == "429" else {}
                    message = f"{what} for {self.headers['Authorization']}"
                    return self.answer(int(what), {"error": {"message": message}}, headers)
                content = reply(asked)
                if what == "cut_reply":
                    content = content[: len(content) // 2]
                if what == "prose":
                    content = "I would rather not say."
                with outer.lock:
                    outer.served[digest] += what != "cut_body"
                made = completion(content)
                if "messages" not in body:  # a text that was to be continued
                    made["choices"] = [{"index": 0, "finish_reason": "stop", "text": content}]
                return self.answer(200, made, cut=what == "cut_body")

            def answer(self, status: int, body: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                except (BrokenPipeError, ConnectionResetError):  # a client that was killed
                    self.close_connection = True
                self.close_connection = self.close_connection or cut

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # clients that are killed reset their connections
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(content: str) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
