"""What a server of any kind means by its status, where nothing is known of it but HTTP.

Rule of this file: pure. A status that says that the server, not the request, is at fault is a failure, which has its
own words with it: who asked is told them if nothing better is left. Every other answer is an answer.
RFC 9110 sections 15.5 and 15.6, RFC 6585 section 4.
"""

from __future__ import annotations

from degrade.ladder import Failure
from tiers.backends.call import Reply
from tiers.inference import UpstreamError


class Erred(UpstreamError):
    """A server answered that it failed; ``reply`` is how it said so."""

    def __init__(self, failure: Failure, message: str, reply: Reply) -> None:
        super().__init__(failure, message, reply.status)
        self.reply = reply


def answered(url: str, reply: Reply) -> Reply:
    """The reply, if it is an answer. Raises Erred for one that tells of a failure.

    429 and 503 are load. 502 and 504 are of something between us and who would answer: there nobody is well. Any other
    5xx may be this input's doing, and speaks against nobody by itself. A failure is told to all who wait for one
    answer, so one that hands out a cookie is none.
    """
    status = reply.status
    private = any(name.lower() == "set-cookie" for name, _ in reply.headers)
    if private or (status < 500 and status != 429):
        return reply
    if status in (429, 503):
        failure = Failure.OVERLOADED
    else:
        failure = Failure.BROKEN if status in (502, 504) else Failure.RAISED
    raise Erred(failure, f"{url} answers {status}", reply)
