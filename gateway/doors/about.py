"""What is said of a route itself, whatever the door: whether it is ready, and what it takes and gives.

Rule of this file: values of no wire. What a route does not know itself (configuration, statistics) is its last tier's
to say, and is not told here.
"""

from __future__ import annotations

import msgspec

from degrade.deadline import Deadline, Ticker
from gateway.problem import Refused, not_found, unavailable
from gateway.route import Route
from tiers.catalog import TensorFact
from tiers.inference import Rejected, UpstreamError

PLATFORM = "tailrace"
"""What a route says it runs on."""


class Described(msgspec.Struct, frozen=True):
    """A route as a model's metadata has it."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]


async def is_ready(route: Route, version: str, ticker: Ticker) -> bool:
    """Whether some tier of the route is ready, within the route's time."""
    return await route.ready(Deadline.after(ticker(), route.timeout), version)


async def described(route: Route, version: str, ticker: Ticker) -> Described:
    """What the route takes and gives. Raises Refused: 404 for a version it has not, 503 if no tier says."""
    no_version = Refused(not_found(f"Route {route.name} has no version {version}."))
    try:
        facts = await route.facts(Deadline.after(ticker(), route.timeout), version)
    except Rejected as error:
        raise no_version from error
    except UpstreamError as error:
        raise Refused(unavailable(f"Route {route.name} cannot describe itself: {error}.")) from error
    if version and version not in facts.versions:
        raise no_version
    return Described(route.name, route.versions(facts), facts.inputs, facts.outputs)
