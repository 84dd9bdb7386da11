"""A key that is wrong does not hide what is wrong with its neighbours, nor blame them."""

import typing
from collections.abc import Iterator

import msgspec
import pytest

from gateway.config import Config
from gateway.schema import Reader
from gateway.sources import ConfigError, load


def fixed(kind: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, int]]:
    """Every list of a fixed length in what reads as ``kind``: its dotted key, and its length."""
    for field in msgspec.structs.fields(kind):
        parts = typing.get_args(field.type)
        if typing.get_origin(field.type) is tuple and parts[-1] is not ...:
            yield path + field.encode_name, len(parts)
        for part in (field.type, *parts):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from fixed(part, f"{path}{field.encode_name}.")


@pytest.mark.parametrize(("key", "length"), list(fixed(Config)))
@pytest.mark.parametrize("more", [-1, 1, -4])
def test_a_list_of_a_fixed_length_of_another_length_is_faulted(key: str, length: int, more: int) -> None:
    written: object = ["50ms" if key.endswith("lag") else 0.5] * (length + more)
    for part in reversed(key.split(".")):
        written = {part: written}
    reader = Reader()
    reader.read(written, Config)
    assert reader.faults == [f"{key}: expected a list of {length}, got one of {length + more}"]


def test_the_thresholds_of_brownout_are_such_lists() -> None:
    assert {("brownout.queue", 4), ("brownout.shed", 4), ("brownout.lag", 4)} <= set(fixed(Config))


def test_what_is_wrong_in_such_a_list_is_told_by_its_place() -> None:
    reader = Reader()
    reader.read({"brownout": {"queue": [0.1, 0.2, 0.3, 7]}}, Config)
    assert reader.faults == ["brownout.queue[3]: Expected float <= 1.0"]


def test_everything_wrong_with_a_route_is_in_one_list() -> None:
    environ = {
        "TAILRACE_ROUTES__R__TIERS": '[{ backend = "upstream", model = "a" }, { backend = "upstream", model = "b" }]',
        "TAILRACE_ROUTES__R__TIMEOUT": "0s",
        "TAILRACE_ROUTES__R__DEGRADE": '["prayer"]',
        "TAILRACE_ROUTES__R__CACHE": '{ ttl = "0s", max_stale = "-1s", refresh = "5s" }',
    }
    with pytest.raises(ConfigError) as error:
        load(None, environ, ["http://127.0.0.1:1"])
    keys = sorted(fault.partition(":")[0] for fault in error.value.faults)
    route = ["cache.max_stale", "cache.ttl", "degrade[0]", "tiers[0].accept", "timeout"]
    assert keys == [f"routes.r.{key}" for key in route]
