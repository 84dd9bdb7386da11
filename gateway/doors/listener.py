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

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.config import Address
from gateway.doors.http import problem_response
from gateway.problem import Problem, Refused, internal, malformed

_SILENT: Final = logging.getLogger("tailrace.access")
_SILENT.disabled = True  # the door counts and logs requests itself

SERVER_NAME: Final = "tailrace"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ParserMissing(Exception):
    """aiohttp runs on its pure Python parser here; we do not."""


def require_strict_parser() -> None:
    """Raises ParserMissing unless aiohttp has its C parser (llhttp, strict)."""
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise ParserMissing(
            "aiohttp's C parser is not loaded; reinstall aiohttp from a wheel and unset AIOHTTP_NO_EXTENSIONS"
        )


class _Request(web.BaseRequest):
    """A request. Its only difference: answers name this server, not the library and its version."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        if response.headers.get("Server") == SERVER_SOFTWARE:
            response.headers["Server"] = SERVER_NAME


class _Connection(RequestHandler):
    """One connection. Its difference: what cannot be parsed gets a problem document, at any time."""

    __slots__ = ("latest",)

    latest: StreamReader | None
    """The body of the request that was last begun to be answered."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._fail_unfinished(self._messages[-1][0])

    def _fail_unfinished(self, error: _ErrInfo) -> None:
        """aiohttp forgets a body that stops being HTTP half-way, and its reader would wait for ever:
        give the reader the problem as its answer, instead of the next request."""
        bodies = [body for _, body in self._messages]
        if self.latest is not None:
            bodies.append(self.latest)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(Refused(_unreadable(error.exc, error.message)))
                body.feed_eof()
                self._messages.pop()
                self.close()
                return

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
            problem = _unreadable(exc, message or str(exc))
            response = problem_response(problem)
        response.force_close()
        return response


class Listener(web.Server):
    """The server of one address. ``handler`` must not raise for anything but a caller who left."""

    def __init__(self, handler: Handler, header_bytes_max: int, connections_max: int) -> None:
        async def strict(request: web.BaseRequest) -> web.StreamResponse:
            problem = _unacceptable(request)
            if problem is None:
                return await handler(request)
            response = problem_response(problem)
            response.force_close()  # where this request ends is not certain
            return response

        super().__init__(strict, request_factory=_request, handler_cancellation=True)
        self._header_bytes_max = header_bytes_max
        self._connections_max = connections_max

    def __call__(self) -> RequestHandler:
        connection = _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=_SILENT,
            auto_decompress=False,  # the codec inflates, within a bound
            max_line_size=self._header_bytes_max,
            max_field_size=self._header_bytes_max,
            keepalive_timeout=75.0,
            lingering_time=2.0,
        )
        connection.latest = None
        return connection

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > self._connections_max:
            transport.abort()  # over the limit: cheaper for both than an answer nobody reads


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    assert isinstance(protocol, _Connection)
    protocol.latest = payload
    return _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())


def _unreadable(error: BaseException | None, message: str) -> Problem:
    if isinstance(error, LineTooLong):
        detail = f"A line of the request's head is longer than server.header_bytes_max ({error.args[1]} bytes)."
        return Problem("head-too-large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Request head too large", detail)
    said = " ".join((message or "unreadable request").split())
    return malformed(f"The request is not valid HTTP/1.1: {said}", "http")


def _unacceptable(request: web.BaseRequest) -> Problem | None:
    """What the parser lets through and we do not: other versions, other transfer codings (RFC 9112)."""
    if request.version not in (HttpVersion10, HttpVersion11):
        detail = f"HTTP/{request.version.major}.{request.version.minor} is not spoken here; use HTTP/1.1."
        return Problem("http-version", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP version not supported", detail)
    codings = ", ".join(request.headers.getall("Transfer-Encoding", ())).lower()
    if codings not in ("", "chunked"):
        detail = f"Transfer-Encoding {codings[:64]!r} is not undone here; use chunked alone."
        return Problem("transfer-coding", HTTPStatus.NOT_IMPLEMENTED, "Transfer coding not implemented", detail)
    return None


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
