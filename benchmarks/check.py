"""Whether one answer is right: status, layout, the outputs' bytes, and where it came from.

Rule of this file: it asks as any client would, through http.client, and trusts no server's word
about the content: the right bytes are known beforehand.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from benchmarks.questions import INFERENCE_HEADER, Question, form, path_of

SECONDS_MAX: Final = 10.0


Headers = Mapping[str, str]
NO_FIELDS: Final[Headers] = MappingProxyType({})


def ask(port: int, asked: Question, model: str, fields: Headers = NO_FIELDS) -> tuple[int, Headers, bytes]:
    """One exchange on a fresh connection: (status, headers with lower-case names, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
    headers = {**form(asked), **fields}
    try:
        connection.request("POST", path_of(model), body=asked.body, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def fault(asked: Question, model: str, status: int, headers: Headers, body: bytes) -> str:
    """What is wrong with an answer to ``asked``; empty if nothing is."""
    if status != http.client.OK:
        return f"status {status}: {body[:200].decode(errors='replace')}"
    length = headers.get(INFERENCE_HEADER.lower(), "")
    if not length.isdigit():
        return f"no usable {INFERENCE_HEADER}: {length!r}"
    try:
        head = json.loads(body[: int(length)])
        told = (head["model_name"], [(o["name"], o["datatype"], o["shape"]) for o in head["outputs"]])
    except (ValueError, KeyError, TypeError) as error:
        return f"unreadable JSON part: {error!r}"
    if told != (model, [("y", "FP32", [1, len(asked.answer) // 4])]):
        return f"wrong outputs: {told}"
    if body[int(length) :] != asked.answer:
        return "wrong bytes in the output"
    return ""


def plain_fault(asked: Question, model: str, status: int, body: bytes) -> str:
    """The same for an answer that is all JSON."""
    if status != http.client.OK:
        return f"status {status}: {body[:200].decode(errors='replace')}"
    try:
        head = json.loads(body)
        output = head["outputs"][0]
        told = (head["model_name"], output["name"], output["datatype"], output["shape"])
        data = struct.pack(f"<{len(output['data'])}f", *output["data"])
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        return f"unreadable: {error!r}"
    if told != (model, "y", "FP32", [1, len(asked.answer) // 4]):
        return f"wrong outputs: {told}"
    return "" if data == asked.answer else "wrong values in the output"


def json_part(headers: Headers, body: bytes) -> bytes:
    """The JSON part of an answer in which no fault was found."""
    return body[: int(headers[INFERENCE_HEADER.lower()])]


def cache_state(headers: Headers) -> str:
    """``hit``, ``miss``, or ``""`` if the server does not say (RFC 9211's Cache-Status, or X-Cache)."""
    told = headers.get("cache-status", "")
    if told:
        members = [parameter.strip() for parameter in told.split(";")[1:]]
        return "hit" if "hit" in members else "miss"
    return {"HIT": "hit", "": ""}.get(headers.get("x-cache", ""), "miss")
