"""What a Triton means that answers an infer request with another status than 200.

Rule of this file: pure. Triton's statuses are coarse, so its words count too: whole sentences of 2.51 with the
model's name in them, as it answered them when it was tried; never words somewhere in a message. What speaks
against whom is decided in ``docs/decisions/0005``.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from degrade.ladder import Failure
from tiers.inference import InferRequest, Rejected, UpstreamError

_MESSAGE_CHARS_MAX: Final = 500  # of an upstream's error text: enough for a person, too little for a flood
_ABSENT: Final = (
    r"Request for unknown model: '{model}' is not found",
    r"Request for unknown model: '{model}' has no available versions",
    r"Request for unknown model: '{model}' version \d+ is not at ready state",
    r"requested model version is not available for model '{model}'",
)
"""What Triton says, with 404 or 503, of a model that is not loaded, being unloaded, or being loaded."""

_DEAD: Final = (
    r"Stub process (?:'{model}_\d+(?:_\d+)?' )?is not healthy\.",
    r"Failed to process the request\(s\) for model (?:instance )?'{model}_\d+(?:_\d+)?', "
    r"message: Stub process (?:'{model}_\d+(?:_\d+)?' )?is not healthy\.",
)
"""How it says that a model's process is gone, which it says with the same status as a model's own error."""

_MISHEARD: Final = (
    r"Not Found",
    r"Request for unknown model: '(?!{model}')[^']*'(?: version \d+)? is not found",
)
"""What it says with 404 of another path than it was asked for. Triton 2.51 loses or adds letters of a request line that
comes to it in several pieces."""

_TRACEBACK: Final = re.compile(r"\n+At:\n")
"""What the python backend puts before the stack trace of a model's exception."""

_OF_TRITON: Final = frozenset({400, 404, 501})
"""Statuses with which Triton itself refuses a request; any other 4xx is of something that stands before it."""


def refusal(url: str, request: InferRequest, status: int, body: bytes) -> UpstreamError | Rejected:
    """What a status other than 200 means.

    The caller's model is known to exist, so a replica that says it does not is restarting or reloading:
    BROKEN, not the caller's fault. A version the model never had is the caller's fault. An error that the model
    answers is RAISED: one input may be to blame. That its process is dead is not the input's doing. 501 is how
    Triton says that a model does not answer this way at all (a decoupled one): no other try will change that.
    A refusal of what stands before Triton is RAISED too: the caller has no part in how the gateway asks, but what
    it sent may be what was disliked. So is one of a model that nobody asked for.
    """
    error = _error_member(body)
    message = _message(error, status, body)
    if _says(_ABSENT, request.model, error) or (status == 404 and error is None):
        return UpstreamError(Failure.BROKEN, f"{url} does not have the model ready: {message}", status)
    if status in {429, 503}:
        return UpstreamError(Failure.OVERLOADED, f"{url} is overloaded: {message}", status)
    misheard = status == 404 and _says(_MISHEARD, request.model, error)
    if status in _OF_TRITON and error is not None and not misheard:
        return Rejected(status, message)
    if 400 <= status < 500 or status == 501:
        return UpstreamError(Failure.RAISED, f"{url} refuses this gateway with {status}: {message}", status)
    raised = status == 500 and error is not None and not _says(_DEAD, request.model, error)
    failure = Failure.RAISED if raised else Failure.BROKEN
    return UpstreamError(failure, f"{url} failed with {status}: {message}", status)


def _says(sentences: tuple[str, ...], model: str, error: str | None) -> bool:
    """Whether the error is one of the sentences, all of it: Triton and models repeat what the caller sent, and a
    caller's words must not pass for Triton's."""
    if error is None:
        return False
    name = re.escape(model)
    return any(re.fullmatch(sentence.replace("{model}", name), error) for sentence in sentences)


def _error_member(body: bytes) -> str | None:
    """The text of Triton's error document, which may be empty; None for any other body."""
    try:
        error = msgspec.json.decode(body, type=dict[str, object]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return error if isinstance(error, str) else None


def _message(error: str | None, status: int, body: bytes) -> str:
    text = body[:_MESSAGE_CHARS_MAX].decode("utf-8", "replace").strip() if error is None else error
    text = _TRACEBACK.split(text, maxsplit=1)[0]  # where in the model's files it was is not the callers' business
    return text[:_MESSAGE_CHARS_MAX] or f"status {status}"
