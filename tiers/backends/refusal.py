"""What a Triton means that answers an infer request with another status than 200.

Rule of this file: pure. Triton's statuses are coarse, so its words count too; they are those of 2.51, and each
expression says what it stands for. What speaks against whom is decided in ``docs/decisions/0005``.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from degrade.ladder import Failure
from tiers.inference import InferRequest, Rejected, UpstreamError

_MESSAGE_CHARS_MAX: Final = 500  # of an upstream's error text: enough for a person, too little for a flood
_ABSENT: Final = re.compile(
    r"unknown model|not ready|not at ready state|no available version|is not available|is unloading",
    re.IGNORECASE,
)
_DEAD: Final = re.compile(r"not healthy|stub process|model is not ready", re.IGNORECASE)
"""How Triton says that a model's process is gone, which it says with the same status as a model's own error."""

_TRACEBACK: Final = re.compile(r"\n+At:\n")
"""What the python backend puts before the stack trace of a model's exception."""

_UNKNOWN_VERSION: Final = re.compile(r" version \d+ is not found")


def refusal(url: str, request: InferRequest, status: int, body: bytes) -> UpstreamError | Rejected:
    """What a status other than 200 means.

    The caller's model is known to exist, so a replica that says it does not is restarting or reloading:
    BROKEN, not the caller's fault. A version the model never had is the caller's fault. An error that the model
    answers is RAISED: one input may be to blame. That its process is dead is not the input's doing. 501 is how
    Triton says that a model does not answer this way at all (a decoupled one): no other try will change that.
    """
    error = _error_member(body)
    message = _message(error, status, body)
    if status in {429, 503}:
        return UpstreamError(Failure.OVERLOADED, f"{url} is overloaded: {message}", status)
    if status in {400, 404}:
        wrong_version = request.version and _UNKNOWN_VERSION.search(message)
        foreign = status == 404 and not error
        if not wrong_version and (foreign or _ABSENT.search(message)):
            return UpstreamError(Failure.BROKEN, f"{url} does not have the model ready: {message}", status)
    if 400 <= status < 500 or status == 501:
        return Rejected(status, message)
    raised = status == 500 and error and not _DEAD.search(message)
    failure = Failure.RAISED if raised else Failure.BROKEN
    return UpstreamError(failure, f"{url} failed with {status}: {message}", status)


def _error_member(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body, type=dict[str, object]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return error if isinstance(error, str) else ""


def _message(error: str, status: int, body: bytes) -> str:
    text = error or body[:_MESSAGE_CHARS_MAX].decode("utf-8", "replace").strip()
    text = _TRACEBACK.split(text, maxsplit=1)[0]  # where in the model's files it was is not the callers' business
    return text[:_MESSAGE_CHARS_MAX] or f"status {status}"
