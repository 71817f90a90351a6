"""The run page as a server on this machine: `python -m cluster.report RUN_DIR --serve`.

It listens on 127.0.0.1 and answers below a secret word of its address alone, since a run's directory is for its owner's
eyes and others may share the machine. It only reads, and nothing of a request is used as a path.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from cluster.run_page.pictures import Pictures
from cluster.run_page.run import RunPage
from common.errors import Refused, UserError

log = logging.getLogger("sightline")

HOST = "127.0.0.1"
ASSETS = Path(__file__).parent / "assets"
PLOTLY = "plotly-basic.min.js"
"""Plotly's basic bundle, which no Python package brings: all that the page draws, in a quarter of the whole library's
bytes. To read the whole was most of a first view."""
MEDIA_TYPES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "load_live.js": "text/javascript",
    "page.js": "text/javascript",
    "plots.js": "text/javascript",
    "pairs.js": "text/javascript",
    PLOTLY: "text/javascript",
}
"""The files of the page."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files. Inline styles are those of the plots."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FOLLOW_S = 1.0
"""How often the run's files are looked at."""


def app_of(run: RunPage, secret: str) -> Starlette:
    """The web application of one run, below `/SECRET/`."""

    def page(_: Request) -> Response:
        return _asset("page.html")

    def asset(request: Request) -> Response:
        return _asset(request.path_params["name"])

    def view(request: Request) -> Response:
        words: Mapping[str, str] = request.query_params
        try:
            value = run.view(request.path_params["name"], words)
        except UserError as error:
            return PlainTextResponse(str(error), 400, HEADERS)
        return JSONResponse(value, headers=HEADERS)

    def picture(request: Request) -> Response:
        return _picture(run.pictures, request.path_params["sha256"])

    routes = [
        Route("/", page),
        Route("/assets/{name}", asset),
        Route("/views/{name}", view),
        Route("/pictures/{sha256}.webp", picture),
    ]
    middleware = [
        # A page of another name that leads here must not read it.
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
    ]
    return Starlette(routes=[Mount(f"/{secret}", routes=routes)], middleware=middleware)


def _asset(name: str) -> Response:
    media_type = MEDIA_TYPES.get(name)
    if media_type is None:
        return PlainTextResponse("there is no such file", 404, HEADERS)
    return Response((ASSETS / name).read_bytes(), 200, HEADERS, media_type)


def _picture(pictures: Pictures, sha256: str) -> Response:
    try:
        content = pictures.encoded(sha256)
    except Refused as error:
        return PlainTextResponse(error.reason, 404, HEADERS)
    # Its name is the hash of its content.
    headers = {**HEADERS, "Cache-Control": "private, max-age=86400, immutable"}
    return Response(content, 200, headers, "image/webp")


class PageServer:
    """Serves one run in threads of its own until it is closed. A context manager.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, run: RunPage, port: int) -> None:
        self._run = run
        self._socket = _listening(port)
        secret = secrets.token_urlsafe(12)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/{secret}/"
        config = uvicorn.Config(
            app_of(run, secret), log_level="error", lifespan="off", access_log=False
        )
        self._server = uvicorn.Server(config)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, daemon=True),
            threading.Thread(target=self._follow, daemon=True),
        ]

    def __enter__(self) -> PageServer:
        for thread in self._threads:
            thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def wait(self) -> None:
        """Until somebody interrupts."""
        # Again and again: a signal that the system gives to another thread does not end a wait without a limit.
        while not self._ended.wait(FOLLOW_S):
            pass

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def _follow(self) -> None:
        """Read the journal to its end, then look for news now and then."""
        while not self._ended.is_set():
            try:
                is_news = self._run.store.update()
            except UserError as error:
                # What is read stays to be seen; more would have gaps.
                log.error("the page follows the run no further: %s", error)
                return
            if not is_news:
                self._ended.wait(FOLLOW_S)


def _listening(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"--port: expected a free port, got {port} ({error.strerror}); choose another, or 0 for any"
        ) from error
    return listening
