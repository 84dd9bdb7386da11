"""What lies on the disk and was purged, of whatever is not copied at that moment too, or is other servers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from gateway.config import Backend, CacheConfig, Config, Features, TierConfig
from gateway.config import Route as RouteConfig
from gateway.config_tables import TableConfig
from gateway.learning import Home
from gateway.operate import admin
from gateway.purges import Purges
from gateway.route import Route
from gateway.sharing import servers_of
from gateway.sources import load
from gateway.units import Seconds
from gateway.witness import Witness
from tests.doors.house import LISTENERS, House, opened, until
from tests.doors.question import Ask
from tests.gateway.conftest import EchoTriton
from tests.gateway.test_tables import Shelf, table_on

ASKED = Ask(((1.0, 2.0),))


def environment(folder: Path, snapshot: str) -> dict[str, str]:
    """With copies of a route, as ``snapshot`` says; "": of none, for it is not configured."""
    tiers = '[{ backend = "upstream", model = "k" }]'
    route = f'{{ tiers = {tiers}, cache = {{ ttl = "1h", snapshot = "{snapshot}" }} }}'
    disk = {"SNAPSHOT__PATH": str(folder), "SNAPSHOT__INTERVAL": "100ms"}
    return disk | ({"ROUTES__R": route} if snapshot else {})


async def reloaded(house: House, upstream: str, folder: Path, snapshot: str) -> None:
    overrides = {f"TAILRACE_{name}": value for name, value in environment(folder, snapshot).items()}
    drain = {"TAILRACE_SERVER__DRAIN": "2s", "TAILRACE_SERVER__EDGE": "true"}
    await house.gateway.take(load(None, LISTENERS | drain | overrides, [upstream]))


async def posted(house: House, query: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(f"{house.admin}/purge?{query}") as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize(
    ("meanwhile", "query", "status"),
    [
        ("fresh", "route=r", 200),
        ("off", "route=r", 200),
        ("off", "all", 200),
        ("", "all", 200),
        ("", "route=r", 404),  # nothing is purged, and that is said
    ],
)
async def test_what_was_purged_is_no_hit_whatever_was_copied_then(
    triton_echo: EchoTriton, tmp_path: Path, meanwhile: str, query: str, status: int
) -> None:
    folder = tmp_path / "snapshot"
    async with opened([triton_echo.url], True, **environment(folder, "fresh")) as house:
        snapshots, caller = house.gateway.snapshots, house.caller("http-json")
        assert snapshots is not None
        assert (await caller.ask(ASKED)).cache == "miss"
        await until(lambda: snapshots.copied > 1)
        await reloaded(house, triton_echo.url, folder, meanwhile)
        said = await posted(house, query)
        assert said[0] == status, said
        assert status == 200 or "?all" in said[1]
        await reloaded(house, triton_echo.url, folder, "")
        await reloaded(house, triton_echo.url, folder, "fresh")
        copies = house.gateway.routes["r"].copies
        assert copies is not None
        await until(lambda: copies.state != "unread")
        assert (await caller.ask(ASKED)).cache == ("miss" if status == 200 else "hit")


@pytest.mark.parametrize("query", ["route=r", "all"])
async def test_a_purge_that_the_disk_has_not_taken_says_so_and_goes_on(
    triton_echo: EchoTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Of a route that is not copied, too."""
    folder, words = tmp_path / "snapshot", tmp_path / "snapshot" / "words"
    monkeypatch.setattr(admin, "SETTLED_SECONDS_MAX", 0.1)
    async with opened([triton_echo.url], True, **environment(folder, "off")) as house:
        snapshots = house.gateway.snapshots
        assert snapshots is not None
        await until(folder.is_dir)
        words.touch()  # no directory: nothing can be written there
        status, said = await posted(house, query)
        assert status == 503
        assert "the disk of the snapshot" in said
        words.unlink()
        await until(_is_told(snapshots.marks.everything if query == "all" else snapshots.marks.of("routes/r")))
        assert (await posted(house, query))[0] == 200


def _is_told(purges: Purges) -> Callable[[], bool]:
    return lambda: purges.is_told


async def test_an_answer_of_other_servers_is_no_fresh_hit(
    triton_echo: EchoTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend whose addresses were others before, or another gateway of this directory; they are away now."""

    async def nobody_can_tell(_: Witness) -> None: ...

    monkeypatch.setattr(Witness, "round", nobody_can_tell)
    disk = environment(tmp_path / "snapshot", "fresh")
    async with opened([triton_echo.url], True, **disk) as house:
        assert (await house.caller("http-json").ask(ASKED)).cache == "miss"
    async with opened(["http://127.0.0.1:9"], True, **disk) as house:
        found = await house.caller("http-json").ask(ASKED)
        assert (found.cache, found.steps, found.degraded) == ("stale", ("snapshot",), True)
    async with opened([triton_echo.url], True, **disk) as house:
        found = await house.caller("http-json").ask(ASKED)
        assert (found.cache, found.reason, found.degraded) == ("hit", "snapshot", False)


def test_servers_are_told_apart_by_their_addresses_and_not_by_their_order() -> None:
    def servers(*http: str, store: str = "redis://h/0") -> bytes:
        tables = {"t": TableConfig(store, "t:{id}", (1,))}
        inputs = {"x": {"parts": [{"entity": "i", "table": "t"}]}}
        features = msgspec.convert({"entities": {"i": {"datatype": "INT64", "many": True}}, "inputs": inputs}, Features)
        route = RouteConfig((TierConfig("b", "k"),), CacheConfig(Seconds(60)), features=features)
        config = Config(backends={"b": Backend(http=http)}, routes={"r": route}, tables=tables)
        table = table_on(Shelf(), "t", lambda: 0.0, shape=(1,), key="t:{id}")
        return servers_of(Route("r", route, [Home(None, None)], 2**20, {"t": table}), config)  # type: ignore[arg-type]

    one = servers("http://a:1", "http://b:1")
    assert one == servers("http://b:1", "http://a:1")
    assert len({one, servers("http://a:1"), servers("http://c:1"), servers("http://a:1", store="redis://i/0")}) == 4
