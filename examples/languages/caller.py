"""A caller of a language model: texts in, languages out, over plain HTTP and JSON as anyone would write it.

Rule of this file: it knows the protocol and not who answers, Triton or the gateway. A time is from the request's first
byte to the answer's last, and reading the answer is not in it.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import numpy as np

from examples.languages.threshold import Probabilities

LABELS: Final = ("language",)
SCORED: Final = ("language", "probabilities")
SECONDS_MAX: Final = 60.0


class Refused(RuntimeError):
    """An answer that is no 200; the message holds it."""


@dataclass(frozen=True)
class Said:
    """One answer. ``probabilities`` is [texts, languages], or [texts, 0] if they were not asked for."""

    languages: list[str]
    probabilities: Probabilities
    provenance: str
    """The gateway's header Tailrace-Provenance; empty from a bare Triton."""
    seconds: float


class Caller:
    """One connection to a server, as a context manager."""

    def __init__(self, url: str) -> None:
        """``url``: where the server is, such as ``http://127.0.0.1:8000``."""
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SECONDS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def ask(self, model: str, texts: Sequence[str], outputs: Sequence[str] = LABELS) -> Said:
        """Which languages these texts are in, by one request. Raises Refused, and OSError for a lost connection."""
        tensor = {"name": "sentence", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in outputs]})
        began = time.perf_counter()
        self._connection.request(
            "POST", f"/v2/models/{model}/infer", body.encode(), {"Content-Type": "application/json"}
        )
        answer = self._connection.getresponse()
        read = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != http.client.OK:
            raise Refused(f"{model} answered {answer.status}: {read.decode(errors='replace')[:500]}")
        told = {output["name"]: output["data"] for output in json.loads(read)["outputs"]}
        probabilities = np.array(told.get("probabilities", ()), np.float32).reshape(len(texts), -1)
        return Said(told["language"], probabilities, answer.headers.get("Tailrace-Provenance", ""), seconds)
