"""Errors on the HTTP wire: RFC 9457 problem documents that tritonclient can also read.

Rule of this file: a refusal is a value. Every problem carries Triton's ``error`` member, one sentence
that ``tritonclient`` raises as the text of its ``InferenceServerException`` (it parses the body as JSON
whatever the content type is, and reads only that member). No socket, no clock, no configuration here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.admission.quota import Verdict, retry_after_value
from tiers.inference import Provenance

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:tailrace:problem:"

Extra = bool | int | float | str | list[str]
Extras = Mapping[str, Extra]
NO_EXTRAS: Final[Extras] = MappingProxyType({})

_DETAIL_CHARACTERS_MAX: Final = 1024  # a caller's own words come back in details; do not let them amplify
_RESERVED: Final = frozenset({"type", "title", "status", "detail", "error"})


class Problem(msgspec.Struct, frozen=True):
    """One refusal or failure, ready for any wire.

    ``slug`` is the stable one-word-with-dashes name (metric label and last part of ``type``), ``status``
    the HTTP status, ``retry_after`` seconds until trying again makes sense, ``extras`` further members
    of the document (RFC 9457 section 3.2); names the document defines itself cannot be overridden.
    """

    slug: str
    status: int
    title: str
    detail: str
    retry_after: float | None = None
    extras: Extras = NO_EXTRAS

    def body(self) -> bytes:
        """The JSON document. Never fails: text that is not valid Unicode is replaced."""
        return msgspec.json.encode(self.document())

    def document(self) -> dict[str, Extra]:
        """The document's members; text that is not valid Unicode is replaced."""
        detail = _clean(self.detail)
        document: dict[str, Extra] = {
            "type": TYPE_PREFIX + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "error": detail or self.title,
        }
        if self.retry_after is not None:
            document["retry_after"] = int(retry_after_value(self.retry_after))
        for name, value in self.extras.items():
            if name in _RESERVED:
                continue
            if isinstance(value, str):
                document[name] = _clean(value)
            elif isinstance(value, list):
                document[name] = [_clean(item) for item in value]
            else:
                document[name] = value
        return document

    def headers(self) -> list[tuple[str, str]]:
        """Header fields that belong to this problem: its media type, and when to come back."""
        fields = [("Content-Type", MEDIA_TYPE), ("Cache-Control", "no-store")]
        if self.retry_after is not None:
            fields.append(("Retry-After", retry_after_value(self.retry_after)))
        if self.status == 401:
            fields.append(("WWW-Authenticate", "Bearer"))  # RFC 9110 section 15.5.2: a 401 must carry one
        if self.status == 415 and self.slug == "unsupported-encoding":
            fields.append(("Accept-Encoding", "gzip, deflate, identity"))  # RFC 9110 section 15.5.16
        query_media = self.extras.get("accept_query")
        if isinstance(query_media, list):
            fields.append(("Accept-Query", ", ".join(query_media)))  # RFC 10008 section 3
        allow = self.extras.get("allow")
        if self.status == 405 and isinstance(allow, list):
            fields.append(("Allow", ", ".join(allow)))  # RFC 9110 section 15.5.6: likewise
        return fields


class Refused(Exception):
    """A request that goes no further; ``problem`` says why. Raised by codecs and admission.

    ``verdict`` is that of the quotas it was charged to, for the wire to tell; None if it met none.
    ``provenance`` says how far it came; None: it was refused before anything was looked up or asked.
    """

    def __init__(
        self, problem: Problem, verdict: Verdict | None = None, provenance: Provenance | None = None
    ) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.verdict = verdict
        self.provenance = provenance


def _clean(text: str) -> str:
    if len(text) > _DETAIL_CHARACTERS_MAX:
        text = text[: _DETAIL_CHARACTERS_MAX - 3] + "..."
    return text.encode("utf-8", "replace").decode("utf-8")


def malformed(detail: str, reason: str = "") -> Problem:
    """400: the bytes are not the protocol. ``reason`` is the codec's one-word slug."""
    extras: Extras = {"reason": reason} if reason else NO_EXTRAS
    return Problem("malformed", 400, "Malformed request", detail, extras=extras)


def invalid(detail: str, reason: str = "") -> Problem:
    """400: well formed, but not what the model or the route accepts."""
    extras: Extras = {"reason": reason} if reason else NO_EXTRAS
    return Problem("invalid", 400, "Invalid request", detail, extras=extras)


def unauthenticated(detail: str = "This gateway needs a valid credential.") -> Problem:
    """401."""
    return Problem("unauthenticated", 401, "Not authenticated", detail)


def forbidden(detail: str, config_key: str = "") -> Problem:
    """403: ``config_key`` is the configuration key that would allow it; it is named in the detail."""
    if not config_key:
        return Problem("forbidden", 403, "Forbidden", detail)
    sentence = f"{detail.rstrip('. ')}. Set {config_key} in the gateway's configuration to allow it."
    return Problem("forbidden", 403, "Forbidden", sentence, extras={"config_key": config_key})


def not_found(detail: str) -> Problem:
    """404: no such route, model, version or path."""
    return Problem("not-found", 404, "Not found", detail)


def method_not_allowed(method: str, allowed: tuple[str, ...], query_media: tuple[str, ...] = ()) -> Problem:
    """405: carries the methods that are allowed, for the Allow header too, and what a QUERY may be made of."""
    detail = f"Method {method} is not allowed here; use {' or '.join(allowed)}."
    extras: Extras = {"allow": list(allowed)}
    if query_media:
        extras = {**extras, "accept_query": list(query_media)}
    return Problem("method-not-allowed", 405, "Method not allowed", detail, extras=extras)


def unsupported_query(detail: str, query_media: tuple[str, ...]) -> Problem:
    """415 for a QUERY of another media type (RFC 10008 section 2.1)."""
    sentence = f"{detail}; use {' or '.join(query_media)}."
    extras: Extras = {"accept_query": list(query_media)}
    return Problem("unsupported-media", 415, "Unsupported media type", sentence, extras=extras)


def timed_out(detail: str) -> Problem:
    """408: the caller did not finish its request in time."""
    return Problem("request-timeout", 408, "Request timeout", detail)


def too_large(detail: str, bytes_max: int | None = None) -> Problem:
    """413: ``bytes_max`` is the limit that was crossed, in bytes."""
    extras: Extras = {} if bytes_max is None else {"bytes_max": bytes_max}
    return Problem("too-large", 413, "Content too large", detail, extras=extras)


def head_too_large(detail: str) -> Problem:
    """431 (RFC 6585 section 5)."""
    return Problem("head-too-large", 431, "Request head too large", detail)


def head_over(bytes_max: int) -> Problem:
    """431: ``bytes_max`` is the bound on a request's head, and so on a line of it."""
    return head_too_large(
        f"The request's head, or a line of it, is longer than server.header_bytes_max ({bytes_max} bytes)."
    )


def unsupported_encoding(detail: str) -> Problem:
    """415 for a Content-Encoding this door does not undo (RFC 9110 section 15.5.16)."""
    return Problem("unsupported-encoding", 415, "Unsupported content encoding", detail)


def deadly(digest: str, seconds: float) -> Problem:
    """422: the request was in work at the death of two workers. No 5xx: who tries again what fails so, a proxy or a
    client, would take it to the next gateway."""
    detail = (
        f"Workers of this gateway have died while this request was in work; it is refused for {seconds:.0f} s more "
        f"(its digest is {digest})."
    )
    return Problem("deadly", 422, "Request refused", detail, extras={"digest": digest})


def quota(detail: str, retry_after: float) -> Problem:
    """429: ``retry_after`` in seconds."""
    return Problem("quota", 429, "Too many requests", detail, retry_after=retry_after)


def unavailable(detail: str, retry_after: float = 1.0) -> Problem:
    """503: the end of the ladder."""
    return Problem("unavailable", 503, "No answer available", detail, retry_after)


def overloaded(detail: str, retry_after: float = 1.0) -> Problem:
    """503: the gateway has no place for it at present; same status as the ladder's end, another slug."""
    return Problem("overloaded", 503, "Too much to do", detail, retry_after)


def model_failed(detail: str) -> Problem:
    """503: the model answered this request with an error. The same again would most likely be of no use, so there
    is no Retry-After."""
    return Problem("model-failed", 503, "Model failed on this request", detail)


def answer_too_large(detail: str) -> Problem:
    """503: the model's answer to this request is beyond the gateway's own bounds. It will be the next time too, so
    there is no Retry-After."""
    return Problem("answer-too-large", 503, "Answer too large", detail)


def deadline_exceeded(detail: str, retry_after: float = 1.0) -> Problem:
    """503: the deadline ended before the ladder did; same status as its end, another slug."""
    return Problem("deadline", 503, "Deadline exceeded", detail, retry_after)


def not_cached(detail: str = "The request says only-if-cached, and no fresh answer is cached.") -> Problem:
    """504: a miss under ``Cache-Control: only-if-cached`` (RFC 9111 section 5.2.1.7)."""
    return Problem("not-cached", 504, "Not cached", detail)


def internal(detail: str = "The gateway failed on this request; it is not the request's fault.") -> Problem:
    """500: our own bug; never a path that is taken by design."""
    return Problem("internal", 500, "Internal error", detail)
