"""What the gateway says of itself and of its routes, as documents for any door.

Rule of this file: it asks routes and tells; what a door makes of a document is the door's.
"""

from __future__ import annotations

import msgspec

from degrade.deadline import Deadline, Ticker
from gateway.problem import Refused, not_found, unavailable
from gateway.route import Route
from tiers.inference import Rejected, UpstreamError


class Readiness(msgspec.Struct, frozen=True):
    """Whether new requests are welcome, and if not, why not."""

    ready: bool
    reason: str = ""

    def document(self) -> dict[str, object]:
        """The same in words."""
        if self.ready:
            return {"ready": True}
        return {"ready": False, "error": f"not ready: {self.reason}"}


async def metadata(route: Route, version: str, now: Ticker) -> dict[str, object]:
    """A route as the protocol describes a model. Raises Refused: 404 for a version that it does not have, 503 if its
    tiers cannot be asked."""
    no_version = Refused(not_found(f"Route {route.name} has no version {version}."))
    try:
        facts = await route.learning.facts(Deadline.after(now(), route.timeout), version)
    except Rejected as error:
        raise no_version from error
    except UpstreamError as error:
        raise Refused(unavailable(f"Route {route.name} cannot describe itself: {error}.")) from error
    if version and version not in facts.versions:
        raise no_version
    inputs, outputs = [
        [{"name": fact.name, "datatype": fact.datatype, "shape": fact.shape} for fact in side]
        for side in (facts.inputs, facts.outputs)
    ]
    return {
        "name": route.name,
        "versions": route.versions(facts),
        "platform": "tailrace",
        "inputs": inputs,
        "outputs": outputs,
    }


async def model_ready(route: Route, version: str, now: Ticker) -> dict[str, object]:
    """Whether some tier of a route is ready."""
    if await route.ready(Deadline.after(now(), route.timeout), version):
        return {"name": route.name, "ready": True}
    return {"name": route.name, "ready": False, "error": "no tier of the route is ready"}
