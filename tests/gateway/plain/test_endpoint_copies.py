"""An endpoint's answers on the disk: what the next gateway has of them when the server is away, and for whom."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from degrade.record import PAYLOAD_BYTES_MAX
from tests.gateway.plain.conftest import Front, Open, Predictor, Told

pytestmark = pytest.mark.parametrize("open_front", ["edge"], indirect=True)
"""On one lane: what is kept, and for whom, is decided behind both."""

ENDPOINT = """
[endpoints.score]
path = "/predict"
cache = { ttl = "1h", max_stale = "1h" }
"""


@pytest.fixture
def copied(tmp_path: Path) -> str:
    return f'{ENDPOINT}[snapshot]\npath = "{tmp_path / "snapshot"}"\n'


async def ask(front: Front, *inputs: int, **fields: str) -> Told:
    """By one name of the host, which is in every key; each gateway here has another port."""
    return await front.predict(*inputs, **{"Host": "models.example", **fields})


def story(told: Told) -> str:
    return told.headers["Tailrace-Provenance"]


async def test_what_an_earlier_gateway_was_answered_is_an_old_answer_while_the_server_is_away(
    predictor: Predictor, open_front: Open, copied: str
) -> None:
    predictor.fields = {"X-Model": "größe", "ETag": '"1"'}
    front = await open_front(copied)
    first = await ask(front, 1, 2)
    await front.close()
    front = await open_front(copied)
    assert (await ask(front, 1, 2)).cache == "miss", "who can be asked is asked: nothing tells if it is the same"
    await front.close()
    await predictor.stop()
    front = await open_front(copied)
    for _ in range(2):
        old = await ask(front, 1, 2)
        assert (old.status, old.body) == (200, first.body)
        assert story(old).startswith("cache=stale, reason=unreachable, age=")
        assert story(old).endswith("steps=(snapshot), degraded")
        assert (old.headers["X-Model"], old.headers["ETag"]) == (first.headers["X-Model"], '"1"')
        assert "Age" in old.headers
    assert (await ask(front, 1, 3)).status == 503
    assert (await ask(front, 1, 2, Cache_Control="no-cache")).status == 503
    assert (await ask(front, 1, 2, Accept="text/plain")).status == 503


async def test_what_varies_is_given_to_nobody_whose_it_is_not(
    predictor: Predictor, open_front: Open, copied: str
) -> None:
    predictor.fields, predictor.echoes = {"Vary": "X-Lang"}, "X-Lang"
    front = await open_front(copied)
    for fields in ({}, {"X_Lang": "de"}):
        assert (await ask(front, 1, **fields)).cache == "miss"
    await front.close()
    await predictor.stop()
    front = await open_front(copied)
    assert (await ask(front, 1, X_Lang="fr")).status == 503, "the first, and nobody has said yet what varies"
    assert (await ask(front, 1, X_Lang="de")).body == b"de"
    assert (await ask(front, 1)).body == b""
    assert (await ask(front, 1, X_Lang="fr")).status == 503


async def test_what_was_purged_stays_so_after_a_restart(predictor: Predictor, open_front: Open, copied: str) -> None:
    front = await open_front(copied)
    await ask(front, 1, 2)
    async with front.client.post(f"{front.admin}/purge?route=score") as purged:
        assert purged.status == 200
    await front.close()
    await predictor.stop()
    front = await open_front(copied)
    assert (await ask(front, 1, 2)).status == 503


async def test_what_is_too_large_to_be_copied_is_told(predictor: Predictor, open_front: Open, copied: str) -> None:
    predictor.reply = b" " * (PAYLOAD_BYTES_MAX + 1)
    front = await open_front(copied)
    await ask(front, 1, 2)
    assert (await ask(front, 1, 2)).cache == "hit", "memory has room for it"
    snapshots = front.gateway.snapshots
    assert snapshots is not None
    async with asyncio.timeout(10):
        while await snapshots.copy(asyncio.sleep) == "late":  # noqa: ASYNC110 - a pass of its own is in work
            await asyncio.sleep(0.01)
    async with front.client.get(f"{front.admin}/metrics") as metrics:
        lines = (await metrics.text()).splitlines()
    assert [line for line in lines if line.startswith("tailrace_snapshot_large")] == [
        'tailrace_snapshot_large_total{route="score"} 1.0'
    ]
    async with front.client.get(f"{front.admin}/status") as status:
        assert (await status.json())["routes"]["score"]["snapshot"]["large"] == 1
    await front.close()
    await predictor.stop()
    front = await open_front(copied)
    assert (await ask(front, 1, 2)).status == 503


@pytest.mark.parametrize("how", ['degrade = ["replica", "stale"]\n', 'cache = { ttl = "1h", snapshot = "off" }\n'])
async def test_who_does_not_want_copies_has_none(predictor: Predictor, open_front: Open, copied: str, how: str) -> None:
    without = ENDPOINT.replace('cache = { ttl = "1h", max_stale = "1h" }\n', "") if "cache" in how else ENDPOINT
    config = without + how + copied.removeprefix(ENDPOINT)
    front = await open_front(config)
    await ask(front, 1, 2)
    assert front.gateway.standing.endpoints["score"].copies is None
    await front.close()
    await predictor.stop()
    front = await open_front(copied)
    assert (await ask(front, 1, 2)).status == 503
