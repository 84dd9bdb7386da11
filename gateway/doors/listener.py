"""aiohttp's low-level HTTP server, with problem documents for what its parser refuses.

Rule of this file: it knows aiohttp's server and nothing of routes. The parser must be the strict C
one: the pure Python parser is another reader with other opinions, and two opinions about where a
request ends are how requests are smuggled.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.address import Address
from gateway.doors.certificates import Certificates
from gateway.doors.handover import Owner
from gateway.doors.handshakes import Handshakes
from gateway.doors.http import problem_response
from gateway.doors.lane import EdgeLane
from gateway.doors.passthrough import UNTYPED
from gateway.problem import Problem, Refused, head_over, internal, malformed

_SILENT: Final = logging.getLogger("tailrace.access")
_SILENT.disabled = True  # the door counts and logs requests itself

SERVER_NAME: Final = "tailrace"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


BACKLOG: Final = 1024

UNREAD_METHOD: Final = "UNKNOWN"
"""aiohttp's name for the method of a request that its parser refused."""

VERSIONS: Final = (HttpVersion10, HttpVersion11)
"""Those that are spoken here."""

ADMIN_CONNECTIONS_MAX: Final = 64
"""Callers of an admin port at once: scrapers and people, each of whom may hold a few connections."""

ADMIN_DRAIN_SECONDS: Final = 1.0
"""How long a scrape under way may take to end once all else has ended."""

NEVER_IDLE_SECONDS: Final = 365 * 86400.0
"""Behind the edge lane aiohttp closes no idle connection: it sees only some of the requests. The lane does."""


class ParserMissing(Exception):
    """aiohttp runs on its pure Python parser here; we do not."""


def require_strict_parser() -> None:
    """Raises ParserMissing unless aiohttp has its C parser (llhttp, strict)."""
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise ParserMissing(
            "aiohttp's C parser is not loaded; reinstall aiohttp from a wheel and unset AIOHTTP_NO_EXTENSIONS"
        )


class _Request(web.BaseRequest):
    """A request. Its differences: answers name this server, not the library and its version, and what passes through
    is given no type that it did not have; ``spoken`` is the version of its head, where answers are in ours."""

    spoken: HttpVersion

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        if response.headers.get("Server") == SERVER_SOFTWARE:
            response.headers["Server"] = SERVER_NAME
        if UNTYPED in response:
            response.headers.pop("Content-Type", None)


class _Connection(RequestHandler):
    """One connection. Its difference: what cannot be parsed gets a problem document, at any time."""

    __slots__ = ("edge", "ending", "latest")

    edge: Owner | None
    """The edge lane's connection that this one works for, if it does."""

    latest: StreamReader | None
    """The body of the request that was last begun to be answered."""

    ending: bool
    """That body turned bad: its answer is the last one, and says so."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._fail_unfinished(self._messages[-1][0])

    @property
    def resting(self) -> bool:
        """Whether every request that was read is answered, and read to its end."""
        return (
            not self._messages
            and not self._request_in_progress
            and self._waiter is not None
            and (self.latest is None or self.latest.is_eof())
        )

    def _fail_unfinished(self, error: _ErrInfo) -> None:
        """aiohttp forgets a body that stops being HTTP half-way, and its reader would wait for ever:
        give the reader the problem as its answer, instead of the next request."""
        for place, (message, body) in enumerate(self._messages):
            if not body.is_eof():  # not begun, perhaps behind others: its answer is the last one
                assert isinstance(message, RawRequestMessage)
                self._messages[place] = (message._replace(should_close=True), body)
                self._fail(body, error)
                return
        if self.latest is not None and not self.latest.is_eof():
            self._fail(self.latest, error)
            self.ending = True
            self.close()

    def _fail(self, body: StreamReader, error: _ErrInfo) -> None:
        body.set_exception(Refused(_unreadable(error.exc, error.message)))
        body.feed_eof()
        self._messages.pop()

    def log_exception(self, *arguments: object, **named: object) -> None:
        error = named.get("exc_info")
        if not isinstance(error, Refused):  # that one is the caller's fault, met while its body is thrown away
            super().log_exception(*arguments, **named)

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

    def __init__(
        self, handler: Handler, header_bytes_max: int, connections_max: int, idle_seconds: float = 75.0
    ) -> None:
        async def strict(request: web.BaseRequest) -> web.StreamResponse:
            edge = _edge_of(request)
            if edge is not None:
                edge.foreign_began()
            problem = _unacceptable(request)
            if problem is None:
                response = await handler(request)
                if isinstance(request.protocol, _Connection) and request.protocol.ending:
                    response.force_close()
            else:
                response = problem_response(problem)
                response.force_close()  # where this request ends is not certain
            if edge is not None:
                await response.prepare(request)
                await response.write_eof()
                if response.keep_alive:  # else aiohttp closes, and nothing more is begun
                    edge.foreign_done()
            return response

        super().__init__(strict, request_factory=_request, handler_cancellation=True)
        self._header_bytes_max = header_bytes_max
        self._connections_max = connections_max
        self._idle_seconds = idle_seconds

    def __call__(self) -> RequestHandler:
        return self._connection(self._idle_seconds)

    def _connection(self, idle_seconds: float) -> _Connection:
        connection = _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=_SILENT,
            auto_decompress=False,  # the codec inflates, within a bound
            max_line_size=self._header_bytes_max,
            max_field_size=self._header_bytes_max,
            keepalive_timeout=idle_seconds,
            lingering_time=2.0,
        )
        connection.latest = None
        connection.ending = False
        connection.edge = None
        return connection

    def behind(self, edge: Owner) -> RequestHandler:
        """aiohttp's protocol for requests that the edge lane hands over."""
        connection = self._connection(NEVER_IDLE_SECONDS)
        connection.edge = edge
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
    spoken = message.version
    made_up = message.method == UNREAD_METHOD and spoken == HttpVersion10  # aiohttp does, of what it cannot read
    if made_up or spoken not in VERSIONS:
        message = message._replace(version=HttpVersion11)  # an answer is in a version of ours (RFC 9110 section 2.5)
    bounded = protocol.edge is not None and protocol.edge.bounded
    if message.upgrade and not bounded:
        message = message._replace(should_close=True)  # aiohttp may have dropped what it read behind this request
    request = _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())
    request.spoken = spoken
    return request


def resting(connection: RequestHandler) -> bool:
    """Whether nothing would be lost with aiohttp's side of a connection, if no half request was given to it."""
    return isinstance(connection, _Connection) and connection.resting


def _edge_of(request: web.BaseRequest) -> Owner | None:
    protocol = request.protocol
    return protocol.edge if isinstance(protocol, _Connection) else None


def _unreadable(error: BaseException | None, message: str) -> Problem:
    if isinstance(error, LineTooLong):
        return head_over(int(error.args[1]))
    said = " ".join((message or "unreadable request").split())
    return malformed(f"The request is not valid HTTP/1.1: {said}", "http")


def _unacceptable(request: web.BaseRequest) -> Problem | None:
    """What the parser lets through and we do not: other versions, other transfer codings (RFC 9112)."""
    spoken = request.spoken if isinstance(request, _Request) else request.version
    if spoken not in VERSIONS:
        detail = f"HTTP/{spoken.major}.{spoken.minor} is not spoken here; use HTTP/1.1."
        return Problem("http-version", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP version not supported", detail)
    codings = ", ".join(request.headers.getall("Transfer-Encoding", ())).lower()
    if codings != "chunked" and "Transfer-Encoding" in request.headers:
        detail = f"Transfer-Encoding {codings[:64]!r} is not undone here; use chunked alone."
        return Problem("transfer-coding", HTTPStatus.NOT_IMPLEMENTED, "Transfer coding not implemented", detail)
    return None


async def listen(
    make: Callable[[], asyncio.Protocol], address: Address, shared: bool = False
) -> tuple[asyncio.Server, str]:
    """Listen on one address; the server, and where it is: ``http://HOST:PORT`` or ``unix:PATH``.

    ``shared``: others may listen on it too, and the kernel shares the connections. Raises OSError, also where somebody
    listens on a unix socket already.
    """
    loop = asyncio.get_running_loop()
    if address.path:
        check_free(address.path)
        return await loop.create_unix_server(make, address.path, backlog=BACKLOG), f"unix:{address.path}"
    bound, where = bind(address, shared)
    return await loop.create_server(make, sock=bound, backlog=BACKLOG), f"http://{where}"


def listen_secured(
    make: Callable[[], asyncio.Protocol],
    address: Address,
    certificates: Certificates,
    lane: EdgeLane,
    shared: bool = False,
) -> tuple[Handshakes, str]:
    """The same with TLS, and never on a unix socket: ``https://HOST:PORT``. Raises OSError."""
    bound, where = bind(address, shared)
    bound.listen(BACKLOG)
    return Handshakes(bound, certificates, lane, make), f"https://{where}"


def bind(address: Address, shared: bool) -> tuple[socket.socket, str]:
    """A socket at HOST:PORT that does not listen yet, and where that is. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address.host, address.port))
    except BaseException:
        bound.close()
        raise
    host = f"[{address.host}]" if family is socket.AF_INET6 else address.host
    return bound, f"{host}:{bound.getsockname()[1]}"


def check_free(path: str) -> None:
    """Raises OSError if somebody accepts connections on a unix socket: whoever listens there next would take its place
    without a word. The file of one that is gone may be taken over, and what is no socket is for the listener to say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)  # one whose line is full is there too, and says so at once
        try:
            asking.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "somebody accepts connections there already; stop that one, or give another path")


@contextlib.contextmanager
def named(key: str, written: str) -> Iterator[None]:
    """Says in an OSError which key's address it was that could not be listened on."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{key} {written}: {error.strerror or error}") from error
