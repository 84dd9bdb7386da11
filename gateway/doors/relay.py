"""A request that passes through on the edge lane, and its answer on the way back, callback by callback.

Rule of this file: what goes out is what came, less the hop-by-hop fields, and the answer likewise, as on the
other lane (``onward.py`` says what is withheld, ``passthrough.py`` how failures are told). A request's body is there
as a whole before a replica is asked, so that a slow caller holds no connection to one; an answer goes back as it
comes. It must not know what a connection of ours does between requests.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
import structlog

from degrade.ladder import Failure
from gateway.admission.quota import Verdict, ratelimit_lines
from gateway.codec.http import passthrough_lines
from gateway.doors.answers import CLOSE, WITHOUT_BODY
from gateway.doors.lane import EdgeLane
from gateway.doors.passthrough import Passage, unanswered, unsendable
from gateway.operate.telemetry import PASSTHROUGH
from gateway.problem import Refused
from tiers.backends.answer import AnswerHead
from tiers.inference import Rejected, UpstreamError
from tiers.pool import Pool
from tiers.seat import Relayed

JOINED_BYTES_MAX: Final = 64 * 1024
"""A head and its first piece up to this are written at once: copying costs less than a second call."""

_PASSED: Final = passthrough_lines()
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"

_log = structlog.get_logger("tailrace")


class Side(Protocol):
    """The caller's connection, as a relay sees it."""

    def relay_write(self, data: bytes) -> int:
        """Write, and let the peer have its time for it; how many bytes wait because it does not read."""

    def relay_done(self, refused: Refused | None) -> None:
        """The answer is written; or there is none, but this refusal."""

    def abort(self) -> None:
        """End now: half an answer must not pass for a whole one."""


class Relay:
    """One request on its way. ``begun``: its answer's head is written."""

    __slots__ = (
        "_began", "_chunked", "_lane", "_lines", "_passage", "_quota", "_relayed", "_side", "_status", "begun", "held",
    )  # fmt: skip

    def __init__(self, side: Side, lane: EdgeLane, passage: Passage, began: float, quota: Verdict | None) -> None:
        self._side = side
        self._lane = lane
        self._passage = passage
        self._began = began
        self._quota = quota
        self._relayed: Relayed | None = None
        self._chunked = False
        self._lines = b""  # of the head, until the piece that comes with it is there
        self._status = 0
        self.begun = False
        self.held = 0

    def start(self, pool: Pool, body: bytes, seconds: float) -> None:
        """Send it to a replica; ``seconds`` bound the wait for a connection."""
        call = msgspec.structs.replace(self._passage.call, body=body) if body else self._passage.call
        try:
            sequence = self._passage.sequence(body) if len(pool.replicas) > 1 else ""
            self._relayed = pool.relay(call, self, seconds, sequence)
        except Rejected as error:
            self._side.relay_done(unsendable(error))
        except UpstreamError as error:
            self.fail(error)

    def resume(self) -> None:
        """The caller reads again."""
        self.held = 0
        if self._relayed is not None:
            self._relayed.resume()

    def abort(self) -> None:
        """The caller has left, or has to: this cancels the work."""
        if self._relayed is not None:
            self._relayed.abort()

    def give_up(self, seconds: float) -> None:
        """No answer has begun in time."""
        self.abort()
        late = UpstreamError(Failure.TIMEOUT, f"no answer within server.passthrough_timeout ({seconds:g} s)")
        self.fail(late)

    # -- what comes back --------------------------------------------------------------------------

    def begin(self, head: AnswerHead, follows: bool) -> None:
        lane = self._lane
        self._status = head.status
        self._chunked = head.length is None and head.status not in WITHOUT_BODY
        quota = ratelimit_lines(self._quota) if self._quota is not None else b""
        passed = _PASSED % ((lane.ticker() - self._began) * 1e3)
        framing = _CHUNKED if self._chunked else b""
        if head.length is not None and head.status not in WITHOUT_BODY:
            framing = b"Content-Length: %d\r\n" % head.length
        if lane.draining:
            framing += CLOSE
        lines = b"".join((head.lines, framing, passed, quota, lane.answers.ending_of(head)))
        if follows:
            self._lines = lines
        else:
            self.begun = True
            self.held = self._side.relay_write(lines)

    def feed(self, piece: bytes) -> None:
        self.begun = True
        lines, self._lines = self._lines, b""
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        if lines and len(piece) <= JOINED_BYTES_MAX:
            lines, piece = b"", lines + piece
        if lines:
            self._side.relay_write(lines)
        self.held = self._side.relay_write(piece)

    def finish(self) -> None:
        ending = self._lines + (_LAST_CHUNK if self._chunked else b"")  # what followed may have been the end alone
        if ending:
            self._side.relay_write(ending)
        seconds = self._lane.ticker() - self._began
        self._lane.telemetry.responded(PASSTHROUGH, self._status, "passthrough", seconds)
        self._side.relay_done(None)

    def fail(self, error: UpstreamError) -> None:
        if self.begun:
            _log.info("answer broken off", route=PASSTHROUGH, message=str(error))
            self._side.abort()
            return
        self._side.relay_done(unanswered(self._passage.call.method, self._passage.call.target, error))
