"""What is wrong with an endpoint's configuration is said with its key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.sources import ConfigError, Loaded, read

BASE = '[backends.a]\nhttp = ["http://h:1"]\n[backends.g]\ngrpc = ["h:2"]\n'
ENDPOINT = '[endpoints.score]\npath = "/predict"\n'
ROUTE = '[routes.score]\ntiers = [{ backend = "a", model = "m" }]\n'


def loaded(folder: Path, text: str, upstreams: tuple[str, ...] = ()) -> Loaded:
    path = folder / "tailrace.toml"
    path.write_text(text)
    return read(str(path), {}, upstreams)


FAULTS = [
    ("a query", ENDPOINT.replace("/predict", "/predict?a=1"), "endpoints.score.path: '/predict?a=1' is no plain path"),
    ("an escape", ENDPOINT.replace("/predict", "/pre%64ict"), "endpoints.score.path: '/pre%64ict' is no plain path"),
    ("no path", ENDPOINT.replace("/predict", "predict"), "endpoints.score.path: 'predict' is no plain path"),
    ("a space", ENDPOINT.replace("/predict", "/pre dict"), "endpoints.score.path: '/pre dict' is no plain path"),
    ("beyond ASCII", ENDPOINT.replace("/predict", "/prä"), "endpoints.score.path: '/prä' is no plain path"),
    ("an empty segment", ENDPOINT.replace("/predict", "//predict"), "endpoints.score.path: no request can have it"),
    ("dots", ENDPOINT.replace("/predict", "/a/../b"), "endpoints.score.path: no request can have it"),
    ("Triton's", ENDPOINT.replace("/predict", "/v2/models/m/infer"), "endpoints.score.path: '/v2/models/m/infer' is"),
    ("Triton's", ENDPOINT.replace("/predict", "/v2"), "endpoints.score.path: '/v2' is Triton's own"),
    ("ours", ENDPOINT.replace("/predict", "/v1/predict/m"), "endpoints.score.path: '/v1/predict/m' is Triton's own"),
    ("twice", ENDPOINT + ENDPOINT.replace("score", "other"), "endpoints.other.path: is the path of endpoint score too"),
    ("no backend", ENDPOINT + 'backend = "b"\n', "endpoints.score.backend: no backend is called 'b'; there is a, g"),
    ("gRPC", ENDPOINT + 'backend = "g"\n', "endpoints.score.backend: 'g' has no http, and an endpoint is asked over"),
    ("a route's", ENDPOINT + ROUTE, "endpoints.score: is the name of a route too"),
    ("a name", ENDPOINT.replace("score", '"a b"'), "endpoints.'a b': an endpoint's name is part of a purge's URL"),
    ("stale", ENDPOINT + 'degrade = ["stale"]\n', 'endpoints.score.degrade: names "stale", and nothing keeps old'),
    ("a step", ENDPOINT + 'degrade = ["tier"]\n', "endpoints.score.degrade"),
    ("a step twice", ENDPOINT + 'degrade = ["replica", "replica"]\n', "endpoints.score.degrade: names replica 2 times"),
    ("a time", ENDPOINT + 'timeout = "0s"\n', "endpoints.score.timeout: is 0s"),
    ("a size", ENDPOINT + 'body_bytes_max = "2GiB"\n', "endpoints.score.body_bytes_max: is 2GiB, and server.buffered_"),
    ("a field", ENDPOINT + 'vary = ["X-A", "X B"]\n', "endpoints.score.vary[1]: 'X B' is no name of a header field"),
    ("a key", ENDPOINT + "tiers = []\n", "endpoints.score.tiers"),
    ("no path at all", "[endpoints.score]\n", "endpoints.score.path"),
]


@pytest.mark.parametrize(("text", "told"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_a_fault_names_its_key(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, BASE + text)
    assert any(line.startswith(told) for line in caught.value.faults), caught.value.faults


def test_what_is_well(tmp_path: Path) -> None:
    other = '[endpoints.b]\npath = "/a:b/@x~(1)"\nbackend = "a"\ncache = { ttl = "1s" }\n'
    config = loaded(tmp_path, BASE + ENDPOINT + other).config
    assert config.backend_of(config.endpoints["score"]) == "a"
    assert not loaded(tmp_path, BASE + ENDPOINT + other).warnings


def test_an_upstream_that_only_an_endpoint_asks_is_asked(tmp_path: Path) -> None:
    server = '[server]\npassthrough = "a"\n'
    with pytest.raises(ConfigError, match="nothing would ever be asked of it"):
        loaded(tmp_path, server + BASE + ENDPOINT, ("http://u:1",))
    config = loaded(tmp_path, server + BASE + ENDPOINT + 'backend = "upstream"\n', ("http://u:1",)).config
    assert config.backend_of(config.endpoints["score"]) == "upstream"


def test_stale_without_time_for_it_is_doubted(tmp_path: Path) -> None:
    (doubt,) = loaded(tmp_path, BASE + ENDPOINT + 'degrade = ["stale"]\ncache = { ttl = "1s" }\n').warnings
    assert doubt.startswith('endpoints.score.degrade: names "stale", and endpoints.score.cache.max_stale is 0s')
