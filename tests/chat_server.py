"""A local HTTP server in place of a chat endpoint: a script says what comes back, down to the bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request; `number` counts from 1, names of headers are lower case."""

    number: int
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]


@dataclass(frozen=True)
class Answer:
    """What is sent back after `delay_s`.

    `trickle` sends a byte now and then and never ends; `cut` closes the connection without a word, or, when there is a
    body, in the middle of it.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    trickle: bool = False
    cut: bool = False


def completion(
    text: str | None,
    finish: str = "stop",
    usage: bool = True,
    delay_s: float = 0.0,
    places: Sequence[Mapping[str, float]] = (),
) -> Answer:
    """A chat completion of 10 prompt tokens and 5 completion tokens.

    `places` are the log-probs of candidates at the first places, the likeliest one first.
    """
    choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": finish}
    if places:
        choice["logprobs"] = {"content": [_place(candidates) for candidates in places]}
    body: dict[str, Any] = {"choices": [choice]}
    if usage:
        body["usage"] = {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
        }
    return Answer(json.dumps(body).encode(), delay_s=delay_s)


def _place(candidates: Mapping[str, float]) -> dict[str, Any]:
    """One place of a reply as OpenAI's protocol writes it."""
    top = [{"token": token, "logprob": logp} for token, logp in candidates.items()]
    return {**top[0], "top_logprobs": top}


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    """An error as OpenAI's protocol writes it."""
    return Answer(json.dumps({"error": {"message": message}}).encode(), status, headers)


class ChatServer:
    """Answers by `script` on a free port of this machine; a context manager. `asked` holds what came in."""

    def __init__(self, script: Callable[[Asked], Answer]) -> None:
        self.script, self.asked = script, list[Asked]()
        self.in_flight = self.most_in_flight = self.greetings = 0
        self.models = refusal(404)
        self._lock, self._closing = threading.Lock(), threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner.serve(self)

            def do_GET(self) -> None:
                owner.greet(self)

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.01},
            daemon=True,
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def greet(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request for the models."""
        assert request.path == "/v1/models"
        self.greetings += 1
        self._send(request, self.models)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request, in the thread that it came in on."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        assert request.path == "/v1/chat/completions"
        with self._lock:
            asked = Asked(
                len(self.asked) + 1,
                {name.lower(): value for name, value in request.headers.items()},
                body,
            )
            self.asked.append(asked)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.script(asked)
            self._closing.wait(answer.delay_s)
        finally:
            # Before the answer goes out: whoever has it may ask again before this thread goes on.
            with self._lock:
                self.in_flight -= 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(request, answer)

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.cut and not answer.body:
            request.close_connection = True
            return
        request.send_response(answer.status)
        length = 1000 if answer.trickle or answer.cut else len(answer.body)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **answer.headers,
        }
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        while answer.trickle and not self._closing.wait(0.05):
            request.wfile.write(b" ")
            request.wfile.flush()
        request.wfile.write(answer.body)
        request.close_connection = answer.cut
