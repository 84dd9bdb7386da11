"""The rules between the sections of a configuration, each of which may be well by itself.

Rule of this file: pure, and everything wrong in one list. It sees what was written, not what the world
is like (that is ``gateway/check.py``'s).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from gateway.config import Config
from gateway.schema import Fault


def between(config: Config, backends: Mapping[str, object]) -> Iterator[Fault]:
    """The rules between sections. ``backends`` are all names written, also of those with faults."""
    if not backends:
        yield "backends", "there is none: give --upstream URL, or write a [backends.NAME] section"
    known = ", ".join(backends) or "none"
    chosen = config.server.passthrough
    if chosen is not None and chosen not in backends:
        yield "server.passthrough", f"no backend is called {chosen!r}; there is {known}"
    for name, route in config.routes.items():
        if not name or not re.fullmatch(r"[^\s/?#%\x00-\x1f]+", name):
            yield f"routes.{name!r}", "a route's name is part of a URL: no spaces, slashes, ?, # or %"
        for index, tier in enumerate(route.tiers):
            if backends and tier.backend not in backends:
                where = f"routes.{name}.tiers[{index}].backend"
                yield where, f"no backend is called {tier.backend!r}; there is {known}"
    owners: dict[str, str] = {}
    for name, caller in config.callers.items():
        owner = owners.setdefault(caller.key_sha256, name)
        if owner != name:
            yield f"callers.{name}.key_sha256", f"is the key of caller {owner} too"
    if not config.server.anonymous and not config.callers:
        yield "server.anonymous", "is false and there are no callers: nobody could call"
