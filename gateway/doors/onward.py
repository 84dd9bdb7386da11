"""The head of a request as a server behind the gateway gets it.

Rule of this file: pure. Hop-by-hop fields and credentials that were meant for the gateway stay here; what the gateway
says of where a request comes from is ``admission/forwarded.py``'s to add.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tiers.backends.fields import end_to_end

CREDENTIALS: Final = frozenset({"authorization", "x-api-key"})
VIA: Final = ("Via", "1.1 tailrace")


def withheld(keys_are_ours: bool) -> frozenset[str]:
    """The fields, in lower case, that a replica does not get to see: credentials that were meant for us."""
    return CREDENTIALS if keys_are_ours else frozenset()


def passed_on(headers: Iterable[tuple[str, str]], withheld: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """A request's fields as a replica gets them: without what is hop-by-hop and those withheld, and with us in Via
    (RFC 9110 section 7.6.3). A caller's Connection must not name what we add, so it has its say first."""
    return (*(pair for pair in end_to_end(headers) if pair[0].lower() not in withheld), VIA)
