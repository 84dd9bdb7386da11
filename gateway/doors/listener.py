"""aiohttp's low-level HTTP server, with problem documents for what its parser refuses.

Rule of this file: it knows aiohttp's server and nothing of routes. The parser must be the strict C
one: the pure Python parser is another reader with other opinions, and two opinions about where a
request ends are how requests are smuggled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.web_protocol import RequestHandler

from gateway.config import Address
from gateway.doors.http import problem_response
from gateway.problem import Problem, internal, malformed

_SILENT: Final = logging.getLogger("tailrace.access")
_SILENT.disabled = True  # the door counts and logs requests itself

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ParserMissing(Exception):
    """aiohttp runs on its pure Python parser here; we do not."""


def require_strict_parser() -> None:
    """Raises ParserMissing unless aiohttp has its C parser (llhttp, strict)."""
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise ParserMissing(
            "aiohttp's C parser is not loaded; reinstall aiohttp from a wheel and unset AIOHTTP_NO_EXTENSIONS"
        )


class _Connection(RequestHandler):
    """One connection. Its only difference: what cannot be parsed gets a problem document."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer is sent already")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            response = problem_response(internal())
        else:
            said = " ".join((message or str(exc) or "unreadable request").split())
            problem = malformed(f"The request is not valid HTTP/1.1: {said}", "http")
            if status != HTTPStatus.BAD_REQUEST:
                problem = Problem("malformed", status, HTTPStatus(status).phrase, problem.detail)
            response = problem_response(problem)
        response.force_close()
        return response


class Listener(web.Server):
    """The server of one address. ``handler`` must not raise for anything but a caller who left."""

    def __init__(self, handler: Handler, header_bytes_max: int, connections_max: int) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._header_bytes_max = header_bytes_max
        self._connections_max = connections_max

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=_SILENT,
            auto_decompress=False,  # the codec inflates, within a bound
            max_line_size=self._header_bytes_max,
            max_field_size=self._header_bytes_max,
            keepalive_timeout=75.0,
            lingering_time=2.0,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self._connections_max:
            transport.abort()  # over the limit: cheaper for both than an answer nobody reads


async def listen(runner: web.ServerRunner | web.AppRunner, address: Address) -> str:
    """Bind one address and say where it is: ``http://HOST:PORT`` or ``unix:PATH``. Raises OSError."""
    await runner.setup()
    if address.path:
        await web.UnixSite(runner, address.path).start()
        return f"unix:{address.path}"
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((address.host, address.port))
    await web.SockSite(runner, bound, backlog=1024).start()
    host = f"[{address.host}]" if family is socket.AF_INET6 else address.host
    return f"http://{host}:{bound.getsockname()[1]}"
