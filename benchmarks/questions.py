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
    """One infer request's body in Triton's binary form, and the bytes of the only right answer."""

    body: bytes
    json_bytes: int
    """Length of the JSON part: the header Inference-Header-Content-Length."""
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


class Wire(Struct, frozen=True):
    """A whole request as it is sent. ``serial_at``: where its serial is; ``digits_at``: its number, or -1."""

    text: bytes
    serial_at: int
    digits_at: int


def path_of(model: str) -> str:
    return f"/v2/models/{model}/infer"


def wire(asked: Question, model: str, port: int, fields: str = "") -> Wire:
    """``port``: the server's, for Host. ``fields``: more lines of the head, each with its end.

    DIGITS may be in ``model`` or ``fields``, once; raises ValueError for more.
    """
    head = (
        f"POST {path_of(model)} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/octet-stream\r\n"
        f"{INFERENCE_HEADER}: {asked.json_bytes}\r\nContent-Length: {len(asked.body)}\r\n{fields}\r\n"
    )
    if head.count(DIGITS) > 1:
        raise ValueError("a request has one changing number at most")
    digits_at = head.find(DIGITS)
    head = head.replace(DIGITS, "0" * len(DIGITS))
    return Wire(head.encode() + asked.body, len(head) + asked.json_bytes, digits_at)
