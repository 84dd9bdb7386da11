"""Purges of what lies on the disk, at the admin port: of what is not copied at that moment too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from gateway.operate import admin
from gateway.purges import Purges
from gateway.sources import load
from tests.doors.house import LISTENERS, House, opened, until
from tests.doors.question import Ask
from tests.gateway.conftest import EchoTriton

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
