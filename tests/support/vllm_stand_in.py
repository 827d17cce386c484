"""What a stock `vllm serve` answers over HTTP, as far as agentrl asks; what it says is up to the test."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SETTINGS: dict[str, Any] = {
    "model_config": {"model": "/nowhere", "logprobs_mode": "processed_logprobs", "dtype": "torch.float32"},
    "cache_config": {"cache_dtype": "auto", "gpu_memory_utilization": 0.9, "enable_prefix_caching": True},
    "parallel_config": {"tensor_parallel_size": 1},
    "device_config": {"device": "cuda"},
    "lora_config": None,
    "weight_transfer_config": None,
}
Said = tuple[list[int], list[float]]


class StandIn:
    """`say(body)` gives ids and log-probs of a turn, `take(folder)` gets new weights; both may raise."""

    def __init__(self, say: Callable[[Any], Said] | None = None, take: Callable[[str], None] | None = None) -> None:
        self.settings: Any = json.loads(json.dumps(SETTINGS))
        self.context = 10**6
        self.say = say or (lambda body: ([5, *body["stop_token_ids"][:1]], [-0.5, -0.25]))
        self.take = take or (lambda folder: None)
        self.asked: list[tuple[str, Any]] = []  # paths and bodies, in order
        self.url = ""
        self.die: Callable[[], None] = lambda: None  # as a killed process does: connections break, none opens

    def answer(self, path: str, body: Any) -> Any:
        """The JSON of an answer, None for an empty one; KeyError where the path is unknown."""
        self.asked.append((path, body))
        if path.startswith("/server_info"):
            if self.settings is None:
                raise KeyError(path)
            return self.settings if isinstance(self.settings, str) else {"vllm_config": self.settings}
        if path == "/v1/models":
            return {"data": [{"id": "served", "max_model_len": self.context}]}
        if path == "/v1/completions":
            ids, logprobs = self.say(body)
            reason = "stop" if ids and ids[-1] in body["stop_token_ids"] else "length"
            return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason}]}
        if path == "/collective_rpc":
            self.take(body["kwargs"]["weights_path"])
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path.startswith(("/health", "/sleep", "/wake_up")):
            return None
        raise KeyError(path)

    @contextmanager
    def serving(self, host: str = "127.0.0.1", port: int = 0) -> Iterator[StandIn]:
        """Answer at `url` meanwhile."""
        stand_in, sockets = self, []

        class Replies(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                sockets.append(self.request)
                super().setup()

            def do_GET(self) -> None:
                self._reply(None)

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("content-length", 0)))
                self._reply(json.loads(text) if text else None)

            def _reply(self, body: Any) -> None:
                status, content = 200, b""
                try:
                    answer = stand_in.answer(self.path, body)
                    content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                    content = b"" if answer is None else content
                except KeyError:
                    status = 404
                except Exception as error:
                    status, content = 500, json.dumps({"message": str(error)}).encode()
                self.send_response(status)
                if content:
                    self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer((host, port), Replies)
        server.daemon_threads, server.block_on_close = True, False
        server.handle_error = lambda *_: None  # type: ignore[method-assign]

        def die() -> None:
            server.shutdown()
            server.server_close()
            for one in sockets:
                with suppress(OSError):  # closed by its client
                    one.shutdown(socket.SHUT_RDWR)

        self.die = die
        self.url = f"http://{host}:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
