"""The ranking's gateway as a caller sees it: ids of a user and of items in, scores and what they are made of out.

Rule of this file: it knows the configuration and plain HTTP, and nothing of what is shown.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from examples.console import DemoFailed
from examples.gatewayprocess import ConfigValue

MODEL: Final = "digits_towers"
KEPT: Final = "rank"
"""The route whose answers are kept, row by row too."""
LIVE: Final = "rank_live"
"""The same without that: each request is made of rows anew, and the model is asked."""
TABLES: Final = ("user", "item")
ANSWER_SECONDS: Final = 30.0
WAIT_SECONDS_MAX: Final = 30.0
POLL_SECONDS: Final = 0.02

Table = Mapping[str, ConfigValue]


@dataclass(frozen=True)
class Ranked:
    """One answer. ``scores`` [n] in the items' order, empty unless ``status`` is 200; ``told`` its provenance, or the
    problem document; ``header`` the provenance as an answer's header has it; ``seconds`` at the caller."""

    status: int
    scores: npt.NDArray[np.float64]
    told: Mapping[str, object]
    header: str
    seconds: float

    def rows(self, table: str) -> dict[str, int]:
        """How many of a table's rows were what: fresh, stale, absent or lost; without those that are none."""
        tables = self.told.get("tables")
        for each in tables if isinstance(tables, list) else ():
            if each["name"] == table:
                return {word: each[word] for word in ("fresh", "stale", "absent", "lost") if each[word]}
        return {}


class Ranker:
    """A caller of one gateway, over one connection."""

    def __init__(self, address: str) -> None:
        """``address``: HOST:PORT; nothing is connected to yet."""
        self._connection = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS)

    def close(self) -> None:
        self._connection.close()

    def ask(self, user: int, items: Sequence[int], route: str = LIVE) -> Ranked:
        body = json.dumps({"inputs": {"user": [user], "items": list(items)}})
        began = time.perf_counter()
        self._connection.request("POST", f"/v1/predict/{route}", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        document = json.loads(answer.read())
        seconds = time.perf_counter() - began
        header = answer.getheader("Tailrace-Provenance", "")
        if answer.status != http.client.OK:
            return Ranked(answer.status, np.array([]), document, header, seconds)
        scores = np.array(document["outputs"]["score"], np.float64)[:, 0]
        return Ranked(answer.status, scores, document["provenance"], header, seconds)

    def well(self, user: int, items: Sequence[int], route: str = LIVE) -> Ranked:
        """An answer of fresh rows, asked for again while a machine that stood still makes them doubtful.

        Raises DemoFailed if there is none.
        """
        end = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            answer = self.ask(user, items, route)
            if answer.status == http.client.OK and not answer.told.get("degraded"):
                return answer
            if answer.status != http.client.OK or time.monotonic() > end:
                raise DemoFailed(f"route {route} answered {answer.status} while all was well: {answer.told}")
            time.sleep(POLL_SECONDS)

    def until(self, user: int, items: Sequence[int], rows: Mapping[str, Mapping[str, int]], what: str) -> Ranked:
        """Ask until the tables' rows are these; raises DemoFailed if they do not get so."""
        end = time.monotonic() + WAIT_SECONDS_MAX
        while True:
            answer = self.ask(user, items)
            found = {table: answer.rows(table) for table in rows}
            if answer.status == http.client.OK and found == rows:
                return answer
            if time.monotonic() > end:
                seen = found if answer.status == http.client.OK else answer.told
                raise DemoFailed(
                    f"{what}: not within {WAIT_SECONDS_MAX:.0f} s; the last answer, {answer.status}: {seen}"
                )
            time.sleep(POLL_SECONDS)


def configuration(triton_url: str, tables: Mapping[str, Table]) -> dict[str, ConfigValue]:
    """``tables``: what each has beside what both have."""
    both: Table = {
        "shape": [64],
        "bounds": {"min": 0.0, "max": 16.0},
        "max_stale": "1h",
        "bytes_max": "16MiB",
        "timeout": "5s",  # a busy machine is not what is shown
    }
    defaults: Mapping[str, ConfigValue] = {"user": "error", "item": "mean"}
    route: dict[str, ConfigValue] = {
        "tiers": [{"backend": "triton", "model": MODEL}],
        "features": {
            "entities": {"user": {"many": False}, "items": {"many": True}},
            "inputs": {
                "user_pixels": {"parts": [{"entity": "user", "table": "user"}]},
                "item_pixels": {"parts": [{"entity": "items", "table": "item"}]},
            },
        },
    }
    return {
        "backends": {"triton": {"http": [triton_url]}},
        "tables": {
            name: {**both, "key": f"{name}:{{id}}", "default": defaults[name], **tables[name]} for name in TABLES
        },
        "routes": {KEPT: {**route, "cache": {"ttl": "10m", "max_stale": "1h", "rows": True}}, LIVE: route},
    }
