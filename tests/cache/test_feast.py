"""Feast's layout, held against what the real Feast wrote (make .feast)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.stores.feast import FeastHashes, FeastKeys, FeastValues, murmur3, numbers_of
from cache.stores.frame import framed
from cache.stores.store import StoreError
from cache.vector import Bounds, Decoded
from cache.words import Keys
from examples.redisserver import RedisServer
from tests.cache.conftest import StoreAt

ROOT = Path(__file__).parents[2]
WRITER = Path(__file__).parent / "feast" / "write.py"
SECONDS = 10.0


def written(folder: Path, server: RedisServer) -> dict[str, dict[str, list[object]]]:
    """What Feast wrote, as it reads it itself."""
    python = ROOT / ".cache" / "feast" / "bin" / "python"
    assert python.exists(), "there is no Feast: make .feast"
    command = [str(python), str(WRITER), str(folder), server.address]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "FEAST_USAGE": "False"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, dict[str, list[object]]] = json.loads(done.stdout.splitlines()[-1])
    return told


async def read(
    store_at: StoreAt, server: RedisServer, keys: FeastKeys, ids: Keys, view: str, features: Sequence[str], numbers: int
) -> Decoded:
    store = store_at(server.url, FeastHashes(view, features))
    values = await store.get_many(keys.keys(ids), SECONDS)
    return FeastValues(len(features), (numbers,), "float32", Bounds()).decode(values)


@pytest.mark.timeout(600)  # to import Feast alone takes seven seconds of a processor, and there may be others
async def test_what_feast_wrote(own_redis: RedisServer, store_at: StoreAt, tmp_path: Path) -> None:
    """One test, for Feast takes its time to start."""
    told = written(tmp_path, own_redis)
    await what_is_there_is_read(told, own_redis, store_at)
    await what_is_no_number_and_what_is_not_there(own_redis, store_at)


async def what_is_there_is_read(
    told: dict[str, dict[str, list[object]]], server: RedisServer, store_at: StoreAt
) -> None:
    users = told["users"]
    features = ["rate", "vector", "age", "small", "active", "precise", "doubles", "counts"]
    ids = np.array([*users["user"], 99], np.int64)
    decoded = await read(store_at, server, FeastKeys("shop", "user"), ids, "user_stats", features, 12)
    assert decoded.found.tolist() == [True, True, True, False]
    assert not decoded.faults
    for place in range(3):
        wanted: list[object] = []
        for feature in features:
            value = users[feature][place]
            wanted += value if isinstance(value, list) else [value]
        assert decoded.rows[place].tolist() == np.array(wanted, np.float32).tolist()
    items = told["items"]
    texts = [str(each).encode() for each in items["item"]]
    decoded = await read(store_at, server, FeastKeys("shop", "item"), [*texts, b"no"], "item_stats", ["price"], 1)
    assert decoded.rows.tolist() == [[9.5], [0.0], [0.0]]
    assert decoded.found.tolist() == [True, True, False]


async def what_is_no_number_and_what_is_not_there(server: RedisServer, store_at: StoreAt) -> None:
    ids = np.array([1], np.int64)
    keys = FeastKeys("shop", "user")
    for features, words in ((["name"], "type 2, which is no number"), (["age", "other"], "has no value")):
        decoded = await read(store_at, server, keys, ids, "user_stats", features, len(features))
        assert decoded.faults[0].kind == "corrupt"
        assert words in str(decoded.faults[0])
    decoded = await read(store_at, server, keys, ids, "user_stats", ["vector"], 4)
    assert "has 3 numbers, and a row has 4" in str(decoded.faults[0])
    for other in (FeastKeys("other", "user"), FeastKeys("shop", "person")):
        decoded = await read(store_at, server, other, ids, "user_stats", ["age"], 1)
        assert not decoded.found.any()
        assert not decoded.faults


async def test_nothing_is_written(redis: RedisServer, store_at: StoreAt) -> None:
    store = store_at(redis.url, FeastHashes("v", ["f"]))
    with pytest.raises(StoreError) as refused:
        await store.put_many([(b"k", framed([b"1"]))], None, SECONDS)
    assert refused.value.kind == "refused"


@given(st.binary(max_size=30))
def test_hostile_messages(message: bytes) -> None:
    kind = "corrupt"
    try:
        numbers_of(message)
    except StoreError as error:
        kind = error.kind
    assert kind == "corrupt"


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (b"\x20\x05", [5.0]),
        (b"\x20" + b"\xff" * 9 + b"\x01", [-1.0]),
        (b"\x2d\0\0\x80\x3f", None),  # float's place, double's number
        (b"\x35\0\0\x80\x3f", [1.0]),
        (b"\x38\x01", [1.0]),
        (b"\x82\x01\x04\x0d\0\0\x80", None),  # ends within
        (b"\x82\x01\x06\x0a\x04\0\0\x80\x3f", [1.0]),
        (b"\x82\x01\x05\x0d\0\0\x80\x3f", [1.0]),  # not packed
        (b"\x72\x04\x0a\x02\x05\x06", [5.0, 6.0]),
        (b"", None),
        (b"\x12\x01a", None),
    ],
)
def test_messages(message: bytes, numbers: list[float] | None) -> None:
    if numbers is None:
        with pytest.raises(StoreError):
            numbers_of(message)
    else:
        assert numbers_of(message) == numbers


@pytest.mark.parametrize(
    ("text", "seed", "number"),
    [(b"", 0, 0), (b"", 1, 0x514E28B7), (b"\xff\xff\xff\xff", 0, 0x76293B50), (b"Hello, world!", 1234, 0xFAF6CDB3)],
)
def test_murmur3_as_published(text: bytes, seed: int, number: int) -> None:
    assert murmur3(text, seed) == number
