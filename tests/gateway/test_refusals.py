"""What a refusal says of how far the request came, as header fields."""

from gateway.doors.exchange import refusal
from gateway.problem import Refused, not_cached, unavailable
from tiers.inference import Provenance

TOLD = ("Cache-Status", "Server-Timing", "Tailrace-Provenance")


def told(refused: Refused) -> list[str]:
    fields = dict(refusal(refused).fields)
    return [fields[name].partition("; ")[2] if name == "Cache-Status" else fields[name] for name in TOLD]


def test_a_refusal_before_anything_was_asked_went_nowhere() -> None:
    assert told(Refused(not_cached())) == ["detail=not-cached", "cache;desc=none", "cache=none, reason=not-cached"]


def test_a_refusal_at_the_ladders_end_says_that_the_tiers_were_asked() -> None:
    refused = Refused(unavailable("gone"), None, Provenance(cache="miss", reason="timeout", degraded=True))
    provenance = "cache=miss, reason=timeout, degraded"
    assert told(refused) == ["fwd=miss; detail=timeout", "cache;desc=miss", provenance]
