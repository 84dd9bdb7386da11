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
from gateway.doors.answers import CLOSE
from gateway.doors.lane import EdgeLane
from gateway.doors.passthrough import Passage, unanswered, unsendable
from gateway.operate.telemetry import PASSTHROUGH
from gateway.problem import Refused
from tiers.backends.answer import AnswerHead
from tiers.inference import Rejected, UpstreamError
from tiers.pool import Pool
from tiers.seat import Carried

JOINED_BYTES_MAX: Final = 64 * 1024
"""A head and its first piece up to this are written at once: copying costs less than a second call."""

_LAST_CHUNK: Final = b"0\r\n\r\n"

_log = structlog.get_logger("tailrace")


class Side(Protocol):
    """The caller's connection, as a relay sees it."""

    def relay_write(self, data: bytes) -> int:
        """Write, and let the peer have its time for it; how many bytes wait because it does not read."""

    def relay_answer(self, answer: bytes, now: float) -> None:
        """Write all of an answer, and be done."""

    def relay_done(self, refused: Refused | None) -> None:
        """The answer is written; or there is none, but this refusal."""

    def abort(self) -> None:
        """End now: half an answer must not pass for a whole one."""


class Relay(msgspec.Struct, eq=False):
    """One request on its way, since ``began`` (ticker's seconds). ``begun``: its answer's head is written; ``held``: so
    many bytes of it wait for the caller. ``lines``: of the head, until the piece that comes with it is there."""

    side: Side
    lane: EdgeLane
    passage: Passage
    began: float
    quota: Verdict | None
    carried: Carried | None = None
    chunked: bool = False
    lines: bytes = b""
    status: int = 0
    begun: bool = False
    held: int = 0

    def start(self, pool: Pool, body: bytes, seconds: float) -> None:
        """Send it to a replica; ``seconds`` bound the wait for a connection."""
        passage = self.passage
        try:
            sequence = passage.sequence(body) if len(pool.replicas) > 1 else ""
            self.carried = pool.relay(passage.call, body, self, seconds, sequence)
        except Rejected as error:
            self.side.relay_done(unsendable(error))
        except UpstreamError as error:
            self.fail(error)

    def resume(self) -> None:
        """The caller reads again."""
        self.held = 0
        if self.carried is not None:
            self.carried.resume()

    def abort(self) -> None:
        """The caller has left, or has to: this cancels the work."""
        carried, self.carried = self.carried, None
        if carried is not None:
            carried.abort()

    def give_up(self, seconds: float) -> None:
        """No answer has begun in time."""
        self.abort()
        late = UpstreamError(Failure.TIMEOUT, f"no answer within server.passthrough_timeout ({seconds:g} s)")
        self.fail(late)

    # -- what comes back --------------------------------------------------------------------------

    def begin(self, head: AnswerHead, follows: bool) -> None:
        lane = self.lane
        self.status = head.status
        self.chunked = head.length is None and head.has_body
        lines = lane.answers.of_passed(head, lane.ticker() - self.began, self._told(), b"")
        if follows:
            self.lines = lines
        else:
            self.begun = True
            self.held = self.side.relay_write(lines)

    def answer(self, head: AnswerHead, body: bytes) -> None:
        lane = self.lane
        if len(body) > JOINED_BYTES_MAX:
            self.begin(head, True)
            self.feed(body)
            self.finish()
            return
        self.carried = None  # which has us as its listener: nothing is left for the collector to find
        now = lane.ticker()
        seconds = now - self.began
        told = b"" if self.quota is None and not lane.draining else self._told()
        self.side.relay_answer(lane.answers.of_passed(head, seconds, told, body), now)
        lane.telemetry.responded(PASSTHROUGH, head.status, "passthrough", seconds)

    def _told(self) -> bytes:
        """What only this answer tells: what is left of the quota, and that the connection ends."""
        quota = b"" if self.quota is None else ratelimit_lines(self.quota)
        return quota + CLOSE if self.lane.draining else quota

    def feed(self, piece: bytes) -> None:
        self.begun = True
        lines, self.lines = self.lines, b""
        if self.chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        if lines and len(piece) <= JOINED_BYTES_MAX:
            lines, piece = b"", lines + piece
        if lines:
            self.side.relay_write(lines)
        self.held = self.side.relay_write(piece)

    def finish(self) -> None:
        self.carried = None
        ending = self.lines + (_LAST_CHUNK if self.chunked else b"")  # what followed may have been the end alone
        if ending:
            self.side.relay_write(ending)
        seconds = self.lane.ticker() - self.began
        self.lane.telemetry.responded(PASSTHROUGH, self.status, "passthrough", seconds)
        self.side.relay_done(None)

    def fail(self, error: UpstreamError) -> None:
        self.carried = None
        if self.begun:
            _log.info("answer broken off", route=PASSTHROUGH, message=str(error))
            self.side.abort()
            return
        self.side.relay_done(unanswered(self.passage.call.method, self.passage.call.target, error))
