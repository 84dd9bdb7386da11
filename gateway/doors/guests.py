"""Who has calls in work at the gRPC door: how many in all, of one address, and on which connection.

Rule of this file: it counts, and knows no call. What is counted when is the listener's to say.
"""

from __future__ import annotations

from collections import Counter


class Guests:
    """At most ``calls_max`` calls at once, and ``per_address_max`` of an address."""

    def __init__(self, calls_max: int, per_address_max: int) -> None:
        self._calls_max = calls_max
        self._per_address_max = per_address_max
        self._addresses: Counter[str] = Counter()
        self.calls = 0
        self.accepted = 0

    def full(self, address: str) -> str:
        """Why one more call of an address is one too many: "full", "address", or "" if it is not."""
        if self.calls >= self._calls_max:
            return "full"
        return "address" if self._addresses[address] >= self._per_address_max else ""

    def enter(self, address: str) -> None:
        """Take a place, which must be left again."""
        self.calls += 1
        self.accepted += 1
        self._addresses[address] += 1

    def leave(self, address: str) -> None:
        self.calls -= 1
        self._addresses[address] -= 1
        if self._addresses[address] <= 0:
            del self._addresses[address]

    def __len__(self) -> int:
        """Addresses with a call in work."""
        return len(self._addresses)


class Connections:
    """Calls that have begun and whose status has not gone out, by connection. ``closing``: no more are let in."""

    def __init__(self) -> None:
        self.closing = False
        self._calls: Counter[str] = Counter()

    def began(self, peer: str) -> None:
        self._calls[peer] += 1

    def ended(self, peer: str) -> None:
        self._calls[peer] -= 1
        if self._calls[peer] <= 0:
            del self._calls[peer]

    def busy(self) -> set[int]:
        """The ports of the connections with a call that has begun; 0 for unix sockets, which have none."""
        return {_port_of(peer) for peer in self._calls}


def _port_of(peer: str) -> int:
    """The port in a gRPC peer (``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``)."""
    port = peer.rpartition(":")[2]
    return int(port) if not peer.startswith("unix") and port.isascii() and port.isdigit() else 0
