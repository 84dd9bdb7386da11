"""What the doors are wired to: one value for all of them.

Rule of this file: names only. A reload makes another such value and hands it to every door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from degrade.deadline import Ticker
from gateway.admission.auth import Directory
from gateway.admission.forwarded import Proxies
from gateway.doors.about import Readiness
from gateway.doors.buffered import Buffered
from gateway.doors.exchange import Exchange
from gateway.endpoint import NO_ENDPOINTS, Endpoint
from gateway.learning import Home
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import Pipeline
from gateway.route import Route


class Ports(msgspec.Struct, frozen=True):
    """``passthrough``: where that goes which no route answers. ``loaded`` is told of a model that a caller loaded or
    unloaded."""

    routes: Mapping[str, Route]
    passthrough: Home
    pipeline: Pipeline
    exchange: Exchange
    directory: Directory
    telemetry: Telemetry
    readiness: Callable[[], Readiness]
    loaded: Callable[[str], None]
    ticker: Ticker
    buffered: Buffered
    proxies: Proxies
    endpoints: Mapping[str, Endpoint] = NO_ENDPOINTS
