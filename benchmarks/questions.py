"""What is asked, to the byte, and the bytes of the only right answer.

Rule of this file: pure. A model answers with the first ten values of its input, so that a right answer can
be told from a right answer to somebody else's question.
"""

from __future__ import annotations

import json
import struct
from typing import Final

from msgspec import Struct

ANSWER_VALUES: Final = 10
SEEDS_MAX: Final = 2**24
INFERENCE_HEADER: Final = "Inference-Header-Content-Length"
DIGITS: Final = "########"
"""Where a path or a field has a number that changes from request to request (native/ask.c writes it)."""


class Question(Struct, frozen=True):
    """One infer request's body, and the bytes of the only right answer's tensor."""

    body: bytes
    json_bytes: int
    """Length of the JSON part, for the header Inference-Header-Content-Length; 0 where all of it is JSON."""
    answer: bytes


def question(values: int, seed: int, serial: int = 0) -> Question:
    """The ``serial``-th input of ``seed``: another seed or serial is another input *and* another answer.

    The first two values carry serial and seed as the 24 low bits of a float between 0.5 and 2, which is
    what native/ask.c does too, so that its inputs are as finite as anybody's.
    """
    if not (0 <= seed < SEEDS_MAX and 0 <= serial < SEEDS_MAX and values >= ANSWER_VALUES):
        raise ValueError(f"seed {seed}, serial {serial}, values {values}: out of range")
    rest = [((index * 37) % 1000) / 500.0 - 1.0 for index in range(2, values)]
    tensor = struct.pack("<2I", 0x3F000000 | serial, 0x3F000000 | seed) + struct.pack(f"<{values - 2}f", *rest)
    head = {
        "inputs": [
            {
                "name": "x",
                "shape": [1, values],
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return Question(text + tensor, len(text), tensor[: 4 * ANSWER_VALUES])


def plain_question(values: int) -> Question:
    """The one question of servers that read JSON only. Its numbers are the same in FP32 as in JSON."""
    data = [((index * 37) % 1000) / 512 - 1 for index in range(values)]
    head = {"id": "bench", "inputs": [{"name": "x", "shape": [1, values], "datatype": "FP32", "data": data}]}
    return Question(json.dumps(head).encode(), 0, struct.pack(f"<{ANSWER_VALUES}f", *data[:ANSWER_VALUES]))


class Wire(Struct, frozen=True):
    """A whole request as it is sent. ``serial_at`` and ``digits_at``: where its serial and its number
    are, or -1."""

    text: bytes
    serial_at: int
    digits_at: int


def form(asked: Question) -> dict[str, str]:
    """The fields that say which form a question has."""
    if not asked.json_bytes:
        return {"Content-Type": "application/json"}
    return {"Content-Type": "application/octet-stream", INFERENCE_HEADER: str(asked.json_bytes)}


def path_of(model: str) -> str:
    return f"/v2/models/{model}/infer"


def wire(asked: Question, model: str, port: int, fields: str = "") -> Wire:
    """``port``: the server's, for Host. ``fields``: more lines of the head, each with its end.

    DIGITS may be in ``model`` or ``fields``, once; raises ValueError for more.
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in form(asked).items())
    head = (
        f"POST {path_of(model)} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"{lines}Content-Length: {len(asked.body)}\r\n{fields}\r\n"
    )
    if head.count(DIGITS) > 1:
        raise ValueError("a request has one changing number at most")
    digits_at = head.find(DIGITS)
    head = head.replace(DIGITS, "0" * len(DIGITS))
    return Wire(head.encode() + asked.body, len(head) + asked.json_bytes if asked.json_bytes else -1, digits_at)
