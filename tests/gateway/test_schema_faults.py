"""A key that is wrong does not hide what is wrong with its neighbours, nor blame them."""

import pytest

from gateway.sources import ConfigError, load


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
