"""A request that workers have died of, at every door: noted while it is in work, and refused once it is condemned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from time import monotonic

import pytest
from msgspec.structs import replace

from gateway.notes import Notebook, Notes
from gateway.suspects import Suspect
from tests.doors.house import until
from tests.doors.question import Ask
from tests.gateway.conftest import Gate

TIER = 'tiers = [{ backend = "upstream", model = "m" }]'
ASK = Ask()


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    found = Notebook(1)
    yield found
    found.close()


@pytest.mark.parametrize("cache", ['cache = { ttl = "1h" }', ""])
async def test_it_is_noted_until_it_is_answered_and_refused_when_condemned(
    gate: Gate, notebook: Notebook, cache: str
) -> None:
    house = await gate.house(ROUTES__R=f"{{ {', '.join(filter(None, (TIER, cache)))} }}")
    house.gateway.note(Notes(notebook.file, 0))
    caller = house.caller(gate.name)
    gate.upstream.gate.clear()
    asked = asyncio.create_task(caller.ask(ASK))
    await until(lambda: gate.upstream.asked == 1)
    (digest,) = notebook.taken(0)
    gate.upstream.gate.set()
    assert not (await asked).problem

    await caller.ask(replace(ASK, rows=((7.0, 7.0),)))
    assert notebook.taken(0) == ()

    notebook.publish([Suspect(digest)])
    again = replace(ASK, cache_control="no-cache") if gate.name != "rpc" else ASK
    assert not (await caller.ask(again)).problem
    for _ in range(2):
        await caller.ask(ASK)  # from its second hit on it is known by its bytes
    notebook.publish([Suspect(digest, monotonic() + 600.0)])
    count = gate.upstream.asked
    if cache:
        assert (await caller.ask(ASK)).cache == "hit"  # what is known by its bytes has been answered
        await house.purge("r")
    refused = await caller.ask(ASK)
    assert refused.problem == "deadly"
    assert digest.hex() in refused.detail
    assert refused.retry_after is None
    assert (await caller.ask(replace(ASK, rows=((8.0, 8.0),)))).problem == ""
    assert gate.upstream.asked == count + 1


async def test_what_one_owner_sends_condemns_nothing_of_anothers(gate: Gate, notebook: Notebook) -> None:
    keys = {name: sha256(name.encode()).hexdigest() for name in ("ann", "bob")}
    callers = {
        f"CALLERS__{name.upper()}": f'{{ key_sha256 = "{key}", tenant = "{name}" }}' for name, key in keys.items()
    }
    house = await gate.house(ROUTES__R=f"{{ {TIER} }}", **callers)
    house.gateway.note(Notes(notebook.file, 0))
    caller = house.caller(gate.name)
    gate.upstream.gate.clear()
    asked = asyncio.create_task(caller.ask(replace(ASK, key="ann")))
    await until(lambda: gate.upstream.asked == 1)
    (digest,) = notebook.taken(0)
    gate.upstream.gate.set()
    assert not (await asked).problem
    notebook.publish([Suspect(digest, monotonic() + 600.0)])
    assert (await caller.ask(replace(ASK, key="ann"))).problem == "deadly"
    assert (await caller.ask(replace(ASK, key="bob"))).problem == ""


async def test_a_refresh_is_in_work_when_its_caller_has_its_answer(gate: Gate, notebook: Notebook) -> None:
    cache = 'cache = { ttl = "1ms", max_stale = "2h", refresh = "1h" }'
    house = await gate.house(ROUTES__R=f"{{ {TIER}, {cache} }}")
    house.gateway.note(Notes(notebook.file, 0))
    caller = house.caller(gate.name)
    await caller.ask(ASK)
    began = monotonic()
    gate.upstream.gate.clear()
    await until(lambda: monotonic() > began + 0.005)
    assert (await caller.ask(ASK)).cache == "stale"
    await until(lambda: gate.upstream.asked == 2)
    assert len(notebook.taken(0)) == 1
    gate.upstream.gate.set()
