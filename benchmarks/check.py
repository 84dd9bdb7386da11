"""Whether an answer is right: status, layout, the outputs' bytes, and where it came from.

Rule of this file: it asks as any client would, through http.client, and trusts no server's word
about the content: the right bytes are known beforehand.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping

from benchmarks.scenarios import MODEL, PATH, Question

SECONDS_MAX = 10.0
INFERENCE_HEADER = "Inference-Header-Content-Length"


def ask(port: int, question: Question) -> tuple[int, Mapping[str, str], bytes]:
    """One exchange on a fresh connection: (status, headers with lower-case names, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_MAX)
    headers = {INFERENCE_HEADER: str(question.json_bytes), "Content-Type": "application/octet-stream"}
    try:
        connection.request("POST", PATH, body=question.body, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def fault(question: Question, status: int, headers: Mapping[str, str], body: bytes) -> str:
    """What is wrong with an answer to ``question``; empty if nothing is."""
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
    if told != (MODEL, [("y", "FP32", [1, len(question.answer) // 4])]):
        return f"wrong outputs: {told}"
    if body[int(length) :] != question.answer:
        return "wrong bytes in the output"
    return ""


def cache_state(headers: Mapping[str, str]) -> str:
    """``hit``, ``miss``, or ``""`` if the server does not say (RFC 9211's Cache-Status, or X-Cache)."""
    told = headers.get("cache-status", "")
    if told:
        members = [parameter.strip() for parameter in told.split(";")[1:]]
        return "hit" if "hit" in members else "miss"
    return {"HIT": "hit", "": ""}.get(headers.get("x-cache", ""), "miss")
