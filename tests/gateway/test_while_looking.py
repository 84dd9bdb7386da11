"""What happens while somebody looks on the disk: what comes meanwhile is as good as if it had been there before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace

from gateway.copies import Copy
from gateway.service import Served
from tests.gateway.test_pipeline import House
from tiers.inference import InferResponse, Tensor

OLD = Tensor("y", "FP32", (1, 2), b"\0\0\x40\x40\0\0\0\0")


class Disk:
    """Copies of a route: who looks first takes as long as ``meanwhile`` does, and nobody else finds anything."""

    def __init__(self, copy: Copy[Served[InferResponse]] | None, meanwhile: Callable[[], Awaitable[object]]) -> None:
        self._copy = copy
        self._meanwhile: Callable[[], Awaitable[object]] | None = meanwhile
        self.standing = SimpleNamespace(trusts=lambda _: True, end_turn=lambda: None)

    async def find(self, digest: bytes, now: float, until: float) -> Copy[Served[InferResponse]] | None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is None:
            return None
        await meanwhile()
        return self._copy


def on(house: House, disk: Disk) -> None:
    house.route.shelves.copied = disk  # type: ignore[assignment]  # the seam


async def test_an_older_copy_does_not_take_the_place_of_an_answer_that_came_while_it_was_read() -> None:
    house = House()
    made = InferResponse("r", "1", (OLD,))
    copy = Copy(Served(made, "m0", 1, 0, 1, ()), house.clock.now - 5.0, True, b"")

    async def another() -> None:
        assert (await house.ask()).response.outputs[0].data != OLD.data

    on(house, Disk(copy, another))
    for _ in range(2):
        answer = await house.ask()
        assert (answer.provenance.cache, answer.provenance.reason) == ("hit", "fresh")
        assert answer.response.outputs[0].data != OLD.data
        assert answer.provenance.age == 0.0
    assert len(house.upstream.requests) == 1


async def test_what_is_fetched_after_an_epoch_turned_during_the_look_is_of_the_new_one() -> None:
    house = House()

    async def turn() -> None:
        house.route.turn()

    on(house, Disk(None, turn))
    assert (await house.ask()).provenance.stored
    assert (await house.ask()).provenance.cache == "hit"
    assert len(house.upstream.requests) == 1
