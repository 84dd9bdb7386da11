"""Configuration: defaults, faults with their paths, overrides, and the example that lists every key."""

from __future__ import annotations

import json
import re
import struct
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.address import Address, parse_address
from gateway.config import Config
from gateway.config_server import ALLOW_ALL
from gateway.schema import default_of, json_schema, plain
from gateway.sources import ConfigError, load, read
from gateway.units import Seconds, Size

EXAMPLE = Path(__file__).parents[2] / "tailrace.example.toml"
MINIMAL = """
[backends.gpu]
http = ["http://127.0.0.1:8000/"]
[routes.digits]
tiers = [{ backend = "gpu", model = "m" }]
"""
KEY = "ab" * 32
DEFAULTED = "degrade = ['default']\ndefault = { y = { "

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> str:
        path = tmp_path / "tailrace.toml"
        path.write_text(text)
        return str(path)

    return written


def faults_of(path: str | None, environ: dict[str, str] | None = None, *upstreams: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, upstreams)
    return caught.value.faults


def test_a_small_file_has_safe_defaults(write: Write) -> None:
    config = load(write(MINIMAL), {})
    assert config.backends["gpu"].http == ("http://127.0.0.1:8000",)
    assert config.server.allow == ()
    assert config.routes["digits"].cache is None
    assert config.routes["digits"].timeout == 10.0
    assert config.passthrough == "gpu"


def test_upstreams_alone_make_a_transparent_proxy() -> None:
    config = load(None, {}, ["http://a:8000", "http://b:8000"])
    assert config.backends["upstream"].http == ("http://a:8000", "http://b:8000")
    assert config.server.allow == ALLOW_ALL
    assert config.routes == {}


def test_upstreams_of_both_protocols_are_one_backend() -> None:
    config = load(None, {}, ["http://a:8000", "http://b", "grpc://a:8001", "grpc://[::1]:8001"])
    assert config.backends["upstream"].http == ("http://a:8000", "http://b")
    assert config.backends["upstream"].grpc == ("a:8001", "[::1]:8001")
    assert load(None, {}, ["grpc://a:8001"]).backends["upstream"].http == ()


@pytest.mark.parametrize(("written", "on"), [("127.0.0.1:8081", True), ("off", False), ("", False)])
def test_the_grpc_door_can_be_left_out(write: Write, written: str, on: bool) -> None:
    assert load(write(f'[server]\ngrpc = "{written}"\n{MINIMAL}'), {}).server.has_grpc is on


def test_upstreams_beside_a_file_get_what_has_no_route_and_allow_nothing_more(write: Write) -> None:
    config = load(write(MINIMAL), {}, ["http://a:8000"])
    assert list(config.backends) == ["gpu", "upstream"]
    assert config.passthrough == "upstream"
    assert config.server.allow == ()


def test_upstreams_keep_what_the_file_says_of_them(write: Write) -> None:
    text = '[backends.upstream]\nhttp = ["http://old:1"]\nprobe = "7s"\n'
    backend = load(write(text + MINIMAL), {}, ["http://a:8000"]).backends["upstream"]
    assert (backend.http, backend.probe) == (("http://a:8000",), 7.0)


def test_upstreams_that_nothing_would_be_asked_of_are_refused(write: Write) -> None:
    elsewhere = '[server]\npassthrough = "gpu"\n'
    (line,) = faults_of(write(elsewhere + MINIMAL), {}, "http://a:8000")
    assert line.startswith("--upstream: nothing would ever be asked of it: server.passthrough is 'gpu'")
    (line,) = faults_of(write(MINIMAL), {"TAILRACE_SERVER__PASSTHROUGH": "gpu"}, "http://a:8000")
    assert line.startswith("--upstream: ")
    tier = '[routes.r]\ntiers = [{ backend = "upstream", model = "m" }]\n'
    assert load(write(elsewhere + tier + MINIMAL), {}, ["http://a:8000"]).passthrough == "gpu"


@pytest.mark.parametrize("text", ["backends = 1", "server = 1"])
def test_upstreams_beside_a_file_that_is_wrong(write: Write, text: str) -> None:
    assert faults_of(write(text), {}, "http://a:8000")


FAULTS = [
    (
        "[routes.r]\ntiers = [{ backend = 'gpu', model = 'm' }]\ncache = { ttl = '1m', second = 'redis://h' }\n"
        "features = { entities = { u = {} }, inputs = { x = { parts = [{ entity = 'u', table = 't' }] } } }\n",
        "routes.r.cache.second: is not for routes with features",
    ),
    (
        "[endpoints.e]\npath = '/p'\nbackend = 'gpu'\ncache = { ttl = '1m', second = 'redis://h' }\n",
        "endpoints.e.cache.second: is for routes",
    ),
    (
        "[snapshot]\npath = 's'\n[endpoints.e]\npath = '/p'\ncache = { ttl = '1m', snapshot = 'fresh' }",
        "endpoints.e.cache.snapshot: is \"fresh\", and nothing tells when a server that is no Triton is another one",
    ),
    (
        "[snapshot]\npath = 's'\n[endpoints.e]\npath = '/p'\ndegrade = []\ncache = { ttl = '1m', snapshot = 'stale' }",
        "endpoints.e.degrade: does not name \"snapshot\", and copies of endpoints.e.cache are for nothing else",
    ),
    (
        "[endpoints.e]\npath = '/p'\ndegrade = ['snapshot']\ncache = { ttl = '1m' }",
        "endpoints.e.degrade: needs a [snapshot] section",
    ),
    (
        "[endpoints.e]\npath = '/p'\ndegrade = ['snapshot']",
        "endpoints.e.degrade: names \"snapshot\", and endpoints.e.cache keeps none",
    ),
    ("", "backends: there is none"),
    ("[servr]", "servr: unknown key; did you mean server?"),
    ("[server]\nhtp = 1", "server.htp: unknown key; did you mean http?"),
    ('[server]\ngrpc = "8081"', "server.grpc: '8081' is neither HOST:PORT"),
    ('[server]\ngrpc = "127.0.0.1:9090"', "server.admin: is the same address as server.grpc"),
    ('[server]\ngrpc = "unix:/x"\nworkers = 2', "server.workers: is more than 1, and a unix socket"),
    ('[server]\ngrpc_message_bytes_max = "2GiB"', "server.grpc_message_bytes_max: is 2GiB; it must be at most"),
    ("[backends.x]\ngrpc = ['a']", "backends.x.grpc[0]: 'a' is neither HOST:PORT"),
    ("[backends.x]\ngrpc = ['a:1', 'b:1']\nhttp = ['http://a']", "backends.x.grpc: and http name the same servers"),
    ("[backends.x]\ngrpc = ['a:0']", "backends.x.grpc[0]: 'a:0' has no port"),
    ("[backends.x]\ngrpc = ['a:1', 'A:1']", "backends.x.grpc: names a:1 2 times"),
    ('[server]\nallow = ["repo"]', "server.allow[0]: 'repo' is not one of repository, logging"),
    ('[server]\nhttp = "localhost"', "server.http: 'localhost' is neither HOST:PORT"),
    ('[server]\nhttp = "127.0.0.1:9090"', "server.admin: is the same address"),
    ('[server]\nrpc = "localhost"', "server.rpc: 'localhost' is neither HOST:PORT"),
    ('[server]\nrpc = "127.0.0.1:9090"', "server.admin: is the same address as server.rpc"),
    ('[server]\nrpc = "127.0.0.1:8080"', "server.rpc: is the same address as server.http"),
    ('[server]\nrpc = "unix:/r"\nworkers = 2', "server.workers: is more than 1, and a unix socket cannot be shared"),
    ("[server]\nrpc_in_flight_max = 0", "server.rpc_in_flight_max: Expected int >= 1"),
    ("[server]\ndrain = 10", "server.drain: expected a duration with its unit"),
    ('[server]\ndrain = "10 parsecs"', "server.drain: '10 parsecs' is not a duration"),
    ('[server]\nbody_bytes_max = "64MB2"', "server.body_bytes_max: '64MB2' is not a size"),
    ('[server]\npassthrough = "x"', "server.passthrough: no backend is called 'x'"),
    ("[server]\nanonymous = false", "server.anonymous: is false and there are no callers"),
    ("[server]\nconnections_max = 0", "server.connections_max: Expected int >= 1"),
    ('server = "x"', "server: expected a table of keys, got a string"),
    ("[callers.a]\nkey_sha256 = 'secret'", "callers.a.key_sha256: must be 64 lower-case hex digits"),
    (f"[callers.'addr:h']\nkey_sha256 = '{'0' * 64}'", "callers.addr:h: is what callers without a key are called"),
    ("[callers.a]", "callers.a.key_sha256: is required"),
    (
        f"[callers.a]\nkey_sha256 = '{KEY}'\n[callers.b]\nkey_sha256 = '{KEY}'",
        "callers.b.key_sha256: is the key of caller a too",
    ),
    ("[backends.x]\nhttp = []", "backends.x.http: needs at least one replica"),
    ("[backends.x]\nhttp = 'http://a'", "backends.x.http: expected a list, got a string"),
    ("[backends.x]\nhttp = ['a:8000']", "backends.x.http[0]: 'a:8000' is not http://HOST:PORT"),
    ("[backends.x]\nhttp = ['http://a/v2']", "backends.x.http[0]: 'http://a/v2' must be only"),
    ("[backends.x]\nhttp = ['http://a:99999']", "backends.x.http[0]: 'http://a:99999' is not a URL"),
    (
        "[backends.x]\nhttp = ['http://a']\nbreaker = { open_max = '0.5s' }",
        "backends.x.breaker.open_max: is shorter than open (500ms < 1s)",
    ),
    (
        "[backends.x]\nhttp = ['http://a']\nconcurrency = { adaptive = false, min = 2 }",
        "backends.x.concurrency.min: has no effect where adaptive is false",
    ),
    (
        "[backends.x]\nhttp = ['http://a']\nconcurrency = { adaptive = false, gain = 0.07 }",
        "backends.x.concurrency.gain: has no effect where adaptive is false",
    ),
    ("[server]\nconnections_max = 3000000000", "server.connections_max: Expected int <= 2147483647"),
    ("[server]\nheader_bytes_max = '1023B'", "server.header_bytes_max: is 1023B; it must be at least 1KiB"),
    ("[server]\nheader_bytes_max = '9999TiB'", "server.header_bytes_max: is 9999TiB; it must be at most 1MiB"),
    ("[server]\nbody_bytes_max = '0B'", "server.body_bytes_max: is 0B; it must be at least 1B"),
    ("[server]\nbody_bytes_max = '2TiB'", "server.body_bytes_max: is 2TiB; it must be at most 1TiB"),
    ("[server]\ndrain = '9999d'", "server.drain: is 9999d; it must be at most 1d"),
    ("[server]\nhead_timeout = '9ms'", "server.head_timeout: is 9ms; it must be at least 10ms"),
    ("[server]\nidle_timeout = '2d'", "server.idle_timeout: is 2d; it must be at most 1d"),
    ("[backends.x]\nhttp = ['http://a']\nprobe = '1us'", "backends.x.probe: is 1us; it must be at least 100ms"),
    ("[backends.x]\nhttp = ['http://a']\nprobe = '2h'", "backends.x.probe: is 2h; it must be at most 1h"),
    (
        "[backends.x]\nhttp = ['http://a']\nconnect_timeout = '1us'",
        "backends.x.connect_timeout: is 1us; it must be at least 10ms",
    ),
    (
        "[backends.x]\nhttp = ['http://a']\nbreaker = { window = '1us' }",
        "backends.x.breaker.window: is 1us; it must be at least 100ms",
    ),
    ("[routes.r]", "routes.r.tiers: is required"),
    ("[routes.r]\ntiers = []", "routes.r.tiers: needs at least one"),
    ("[routes.'a/b']\ntiers = [{ backend = 'gpu', model = 'm' }]", "routes.'a/b': a route's name"),
    ("[routes.r]\ntiers = [{ backend = 'gpu', model = '..' }]", "routes.r.tiers[0].model: must be a model's name"),
    ("[routes.r]\ntiers = [{ backend = 'cpu', model = 'm' }]", "routes.r.tiers[0].backend: no backend is"),
]
ROUTE_FAULTS = [
    ("degrade = ['stale']", "routes.r.degrade: names \"stale\", and nothing keeps old answers: write routes.r.cache"),
    ("degrade = ['tier', 'stale', 'replica']", "routes.r.degrade: names \"stale\", and nothing keeps"),
    (
        "limits = { body_bytes_max = '1MiB', json_bytes_max = '2MiB' }",
        "routes.r.limits.json_bytes_max: is 2MiB, and no body may have more than 1MiB; lower it, or raise routes.r.",
    ),
    (
        "limits = { json_bytes_max = '65MiB' }",
        "routes.r.limits.json_bytes_max: is 65MiB, and no body may have more than 64MiB; lower it, or raise server.",
    ),
    ("limits = { json_bytes_max = '0B' }", "routes.r.limits.json_bytes_max: is 0B; it must be at least 1B"),
    ("limits = { batch_max = 10000000000 }", "routes.r.limits.batch_max: Expected int <= 2147483647"),
    ("timeout = '900us'", "routes.r.timeout: is 900us; it must be at least 1ms"),
    ("timeout = '2d'", "routes.r.timeout: is 2d; it must be at most 1d"),
    ("cache = { ttl = '3651d' }", "routes.r.cache.ttl: is 3651d; it must be at most 3650d"),
    ("cache = { ttl = '1s', max_stale = '99999d' }", "routes.r.cache.max_stale: is 99999d; it must be at most"),
    ("cache = { ttl = '1s', bytes_max = '2TiB' }", "routes.r.cache.bytes_max: is 2TiB; it must be at most 1TiB"),
    ("quota = { rate = 1, per = '0s' }", "routes.r.quota.per: must be more than 0"),
    ("quota = { rate = 1, per = '4000d' }", "routes.r.quota.per: is 4000d; it must be at most 3650d"),
    ("quota = { rate = 1001, per = '1us' }", "routes.r.quota.rate: is more than quotas can count (1000 in 1us)"),
    ("quota = { rate = 2000000000 }", "routes.r.quota.rate: is more than quotas can count (1000000000 in 1s)"),
    ("quota = { rate = 1, burst = 2000000000 }", "routes.r.quota.burst: takes longer to be earned back than 3650d"),
    ("caller_quota = { rate = 1, burst = " + "9" * 400 + " }", "routes.r.caller_quota.burst: "),
    ("cache = { ttl = '0s' }", "routes.r.cache.ttl: is 0"),
    ("cache = { max_stale = '1h' }", "routes.r.cache.ttl: is required"),
    ("cache = { ttl = '1m', refresh = '1m' }", "routes.r.cache.refresh: is longer than max_stale (1m > 0s)"),
    ("cache = { ttl = '1m', second = 'http://u:secret@h' }", "routes.r.cache.second: is none of redis://HOST:PORT/DB"),
    ("cache = { ttl = '1m', second = 'redis://h', second_timeout = '2s' }", "routes.r.cache.second_timeout: is 2s"),
    (
        "cache = { ttl = '1m', second = 'redis://h' }\ntimeout = '30ms'",
        "routes.r.cache.second_timeout: is 20ms, more than half of the route's time (30ms)",
    ),
    ("cache = { ttl = '1m', rows_bytes_max = '1KiB' }", "routes.r.cache.rows_bytes_max: is 1KiB; it must be at least"),
    ("cache = { ttl = '1m', policy = 'lfu' }", "routes.r.cache.policy: 'lfu' is not one of s3fifo, sieve, lru"),
    ("degrade = ['default']", "routes.r.degrade: names \"default\", and none is declared"),
    (
        "degrade = []\ndefault = { y = { datatype = 'FP32', shape = [-1, 2], value = 0 } }",
        "routes.r.default: is declared, and `degrade` does not name",
    ),
    (DEFAULTED + "datatype = 'FP32', shape = [-1, 0], value = 0 } }", "routes.r.default.y.shape: must be sizes"),
    (DEFAULTED + "datatype = 'FP32', shape = [2, -1], value = 0 } }", "routes.r.default.y.shape: must be sizes"),
    (DEFAULTED + "datatype = 'FP32', shape = [-1, 262145], value = 0 } }", "routes.r.default.y.shape: is 262145"),
    (DEFAULTED + "datatype = 'FP32', shape = [-1, 2], value = nan } }", "routes.r.default.y.value: must be finite"),
    (DEFAULTED + "datatype = 'FP16', shape = [-1, 2], value = 1e6 } }", "routes.r.default.y.value: element 0 is"),
    (DEFAULTED + "datatype = 'UINT8', shape = [-1, 2], value = 256 } }", "routes.r.default.y.value: element 0 is 256"),
    (DEFAULTED + "datatype = 'INT64', shape = [2], value = 0.5 } }", "routes.r.default.y.value: data is not INT64"),
    (DEFAULTED + "datatype = 'BYTES', shape = [2], value = 1 } }", "routes.r.default.y.value: data is not BYTES"),
    (DEFAULTED + "datatype = 'FP32', shape = [2], value = [1, 2, 3] } }", "routes.r.default.y.value: data has 3"),
    (
        DEFAULTED + f"datatype = 'BYTES', shape = [-1, 262144], value = '{'x' * 100_000}' }} }}",
        "routes.r.default.y.value: has 26215448576 bytes a row; at most 2097152",
    ),
    (DEFAULTED + "datatype = 'FP33', shape = [2], value = 1 } }", "routes.r.default.y.datatype: 'FP33' is not one of"),
    (
        DEFAULTED + "datatype = 'FP32', shape = [2], value = 1 }, "
        "z = { datatype = 'FP32', shape = [-1], value = 1 } }",
        "routes.r.default: has -1 in front of some shapes",
    ),
    ("degrade = ['snapshot']", "routes.r.degrade: names \"snapshot\", and routes.r.cache keeps none"),
    (
        "cache = { ttl = '1m' }\ndegrade = ['snapshot']",
        "routes.r.degrade: needs a [snapshot] section, which says where copies are kept",
    ),
    ("cache = { ttl = '1m', snapshot = 'fresh' }", "routes.r.cache.snapshot: needs a [snapshot] section"),
    ("cache = { ttl = '1m', snapshot = 'old' }", "routes.r.cache.snapshot: 'old' is not one of off, stale, fresh"),
    ("degrade = ['tier', 'tier']", "routes.r.degrade: names tier 2 times"),
    ("timeout = '0s'", "routes.r.timeout: is 0s; it must be at least 1ms"),
    ("quota = { rate = 0 }", "routes.r.quota.rate: Expected int >= 1"),
    ("inputs.x = { min = 2.0, max = 1.0 }", "routes.r.inputs.x.min: is above max"),
    ("limits = { json_depth_max = 1000 }", "routes.r.limits.json_depth_max: Expected int <= 200"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_a_fault_names_its_key(write: Write, text: str, fault: str) -> None:
    base = "" if text == "" else MINIMAL
    assert [line for line in faults_of(write(text + base)) if line.startswith(fault)]


@pytest.mark.parametrize(("text", "fault"), ROUTE_FAULTS, ids=[fault for _, fault in ROUTE_FAULTS])
def test_a_fault_of_a_route_is_the_only_one(write: Write, text: str, fault: str) -> None:
    route = f"[routes.r]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n{text}\n"
    (line,) = faults_of(write(route + MINIMAL))
    assert line.startswith(fault)


@pytest.mark.parametrize("said", ["min = 128, max = 128", "adaptive = false", "max = 1", "min = 1, gain = 0.1"])
def test_a_backend_is_given_as_much_as_its_connections_allow(write: Write, said: str) -> None:
    """And where nothing is said, the least that it is given gives way to few connections."""
    two = f"[backends.x]\nhttp = ['http://a', 'http://b']\nconcurrency = {{ {said} }}\n"
    few = "[backends.y]\nhttp = ['http://a']\nconnections_max = 1\n"
    assert {"x", "y"} <= set(load(write(two + few + MINIMAL), {}).backends)


def test_a_declared_default_is_what_was_written(write: Write) -> None:
    declared = DEFAULTED + (
        "datatype = 'FP32', shape = [-1, 2], value = [1, 0.5] }, "
        "label = { datatype = 'BYTES', shape = [-1, 1], value = 'none' } }"
    )
    written = write(f"[routes.r]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n{declared}\n{MINIMAL}")
    route = load(written, {}).routes["r"]
    assert struct.unpack("<2f", route.default["y"].data()) == (1.0, 0.5)
    assert route.default["label"].data() == b"\x04\0\0\0none"


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("brownout = ['fast']", "routes.r.brownout: names \"fast\", and there is one tier only"),
        ("brownout = ['stale']", "routes.r.brownout: names \"stale\", and no answer is kept beyond its ttl"),
        ("brownout = ['stale']\ncache = { ttl = '1m' }", "routes.r.brownout: names \"stale\""),
        ("brownout = ['stale']\ncache = { ttl = '1m', max_stale = '1h' }", ""),
    ],
)
def test_what_a_brownout_cannot_change_is_not_allowed_in_vain(write: Write, said: str, fault: str) -> None:
    written = write(f"[routes.r]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n{said}\n{MINIMAL}")
    if not fault:
        load(written, {})
        return
    with pytest.raises(ConfigError) as caught:
        load(written, {})
    assert fault in str(caught.value)


UNREACHABLE = ["..", ".", "a\\b", "stats", "trace", "a\x7fb", "a\x00b", "a b", "", "%2e%2e", "a%2fb"]


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_route_that_no_request_could_reach_is_refused(write: Write, name: str) -> None:
    written = f"[routes.{json.dumps(name)}]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n"
    (line,) = faults_of(write(written + MINIMAL))
    assert line.startswith(f"routes.{name!r}: ")


@pytest.mark.parametrize("name", ["...", "a.b", "versions", "infer", "ready", "Stats", "größe", "a:b", "a+b", "~"])
def test_a_route_that_requests_can_reach_is_not(write: Write, name: str) -> None:
    written = f"[routes.{json.dumps(name)}]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n"
    assert name in load(write(written + MINIMAL), {}).routes


def test_defaults_never_contradict_what_was_written(write: Write) -> None:
    bare = "[routes.r]\ntiers = [{ backend = 'gpu', model = 'm' }]\nlimits = { body_bytes_max = '1KiB' }\n"
    route = load(write(bare + MINIMAL), {}).routes["r"]
    assert "stale" in route.degrade
    assert route.limits.json_bytes_max > 1024


def test_tiers_need_accept_except_the_last(write: Write) -> None:
    accept = "{ output = 'p', at_least = 0.5 }"
    tiers = (
        f"[{{ backend = 'gpu', model = 'a' }}, {{ backend = 'gpu', model = 'b', accept = {accept} }},"
        " { backend = 'gpu', model = 'a' }]"
    )
    lines = faults_of(write(f"[routes.r]\ntiers = {tiers}\n{MINIMAL}"))
    assert [line.partition(":")[0] for line in lines] == ["routes.r.tiers[0].accept", "routes.r.tiers"]


def test_all_faults_come_at_once(write: Write) -> None:
    text = "[server]\nhtp = 1\ndrain = 3\n[log]\nlevel = 'loud'\n[routes.r]\ncache = { ttl = 5 }\n"
    found = {line.partition(":")[0] for line in faults_of(write(text + MINIMAL))}
    assert found == {"server.htp", "server.drain", "log.level", "routes.r.tiers", "routes.r.cache.ttl"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"a = ", "is not TOML"), (b"\xff", "is not UTF-8"), (None, "cannot be read: No such file")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "f.toml"
    if content is not None:
        path.write_bytes(content)
    (line,) = faults_of(str(path))
    assert fault in line


def test_the_environment_overrides_the_file(write: Write) -> None:
    environ = {
        "TAILRACE_SERVER__HTTP": "0.0.0.0:80",
        "TAILRACE_SERVER__DRAIN": "250ms",
        "TAILRACE_SERVER__CONNECTIONS_MAX": "7",
        "TAILRACE_SERVER__ALLOW": '["trace"]',
        "TAILRACE_ROUTES__DIGITS__TIMEOUT": "3s",
        "HOME": "/",
    }
    config = load(write(MINIMAL.replace("digits", "Digits")), environ)
    assert (config.server.http, config.server.drain) == ("0.0.0.0:80", 0.25)
    assert (config.server.connections_max, config.server.allow) == (7, ("trace",))
    assert config.routes["Digits"].timeout == 3.0


@pytest.mark.parametrize("name", ["TAILRACE_SERVER__HTP", "TAILRACE_SERVER__", "TAILRACE___HTTP", "TAILRACE_A__B__C"])
def test_a_variable_in_the_form_of_a_key_must_be_one(name: str) -> None:
    assert faults_of(None, {name: "x"}, "http://a:1")


@pytest.mark.parametrize("name", ["TAILRACE_API_KEY", "TAILRACE_HTTP", "TAILRACE_SERVER_HTTP", "TAILRACE_"])
def test_any_other_variable_with_our_prefix_is_told_and_its_value_is_not(name: str) -> None:
    (warning,) = read(None, {name: "hunter2"}, ["http://a:1"]).warnings
    assert warning.startswith(f"{name}: names no key")
    assert "TAILRACE_SECTION__KEY" in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize(
    "name",
    [
        "TAILRACE_SERVICE_HOST",
        "TAILRACE_SERVICE_PORT_HTTP",
        "TAILRACE_PORT",
        "TAILRACE_PORT_8080_TCP",
        "TAILRACE_ADMIN_PORT_9090_TCP_ADDR",
        "TAILRACE_TRITON_ENV",
    ],
)
def test_variables_that_others_set_are_left_alone(name: str) -> None:
    assert read(None, {name: "tcp://10.0.0.1:1"}, ["http://a:1"]).warnings == ()


@pytest.mark.parametrize(
    ("route", "told"),
    [
        ("degrade = ['stale']\ncache = { ttl = '1m' }", True),
        ("degrade = ['stale']\ncache = { ttl = '1m', max_stale = '1m' }", False),
        ("degrade = ['tier']\ncache = { ttl = '1m' }", False),
        ("cache = { ttl = '1m' }", False),
    ],
)
def test_a_stale_step_with_hardly_anything_to_serve_is_told(write: Write, route: str, told: bool) -> None:
    warnings = read(write(f"[routes.r]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n{route}\n{MINIMAL}"), {}).warnings
    assert [line.partition(":")[0] for line in warnings] == ["routes.r.degrade"] * told


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:0", Address(host="127.0.0.1")),
        ("[::1]:80", Address(host="::1", port=80)),
        ("unix:/run/t.sock", Address(path="/run/t.sock")),
    ],
)
def test_addresses(written: str, address: Address) -> None:
    assert parse_address(written) == address


@pytest.mark.parametrize("written", ["", ":80", "a:", "a:65536", "::1:80", "unix:", "unix:" + "x" * 108])
def test_addresses_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(written)


@pytest.mark.parametrize(
    ("written", "seconds"), [("250ms", 0.25), ("1.5s", 1.5), ("5m", 300.0), ("24h", 86400.0), (0, 0.0)]
)
def test_durations(written: object, seconds: float) -> None:
    assert Seconds.parse(written) == seconds


@pytest.mark.parametrize(("written", "size"), [("512B", 512), ("1.5KiB", 1536), ("64MiB", 2**26), ("1MB", 10**6)])
def test_sizes(written: object, size: int) -> None:
    assert Size.parse(written) == size


@pytest.mark.parametrize("written", ["", "5", "-1s", "1e3s", "5S", "s", 5, 1.5, True, None, "nan s", "1s\n2s"])
def test_quantities_without_a_known_unit_are_refused(written: object) -> None:
    for kind in (Seconds, Size):
        with pytest.raises(ValueError, match=r"unit|duration|size"):
            kind.parse(written)


@given(st.integers(0, 10**12 - 1))
def test_sizes_are_written_as_they_are_read(size: int) -> None:
    assert Size.parse(str(Size(size))) == size


@given(st.integers(0, 10**9), st.sampled_from(["us", "ms", "s", "m", "h", "d"]))
@example(16018363, "us")
def test_durations_are_written_as_they_are_read(number: int, unit: str) -> None:
    once = Seconds.parse(f"{number}{unit}")
    assert float(Seconds.parse(str(once))) == pytest.approx(float(once), rel=1e-9)


def test_the_schema_is_json_with_defaults_as_people_write_them() -> None:
    schema = json.loads(json.dumps(json_schema(Config)))
    server = schema["$defs"]["Server"]
    assert server["properties"]["drain"]["default"] == "10s"
    assert server["properties"]["body_bytes_max"]["default"] == "64MiB"
    assert server["additionalProperties"] is False
    assert schema["$defs"]["CacheConfig"]["required"] == ["ttl"]


class Stated:
    """The example with every stated default as a live line, and without them."""

    def __init__(self) -> None:
        text = EXAMPLE.read_text()
        self.live = tomllib.loads(text)
        self.all = tomllib.loads(re.sub(r"(?m)^#(?=[a-z_]+ = )", "", text))


def structs_in(annotation: object) -> list[type[msgspec.Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [struct for part in typing.get_args(annotation) for struct in structs_in(part)]


def tables(kind: type[msgspec.Struct], live: object, everything: object) -> Iterator[tuple[type, dict, dict]]:
    """Every table of the example with the struct that it is, beside the same table with defaults."""
    assert isinstance(live, dict)
    assert isinstance(everything, dict)
    yield kind, live, everything
    for field in msgspec.structs.fields(kind):
        inner = structs_in(field.type)
        if not inner or field.encode_name not in everything:
            continue
        one, other = live.get(field.encode_name, {}), everything[field.encode_name]
        if isinstance(other, list):
            pairs = list(zip(one, other, strict=True))
        elif typing.get_origin(field.type) is dict:
            pairs = [(one.get(name, {}), table) for name, table in other.items()]
        else:
            pairs = [(one, other)]
        for left, right in pairs:
            yield from tables(inner[0], left, right)


def test_the_example_and_all_its_defaults_are_valid(write: Write) -> None:
    assert load(str(EXAMPLE), {})
    assert load(write(re.sub(r"(?m)^#(?=[a-z_]+ = )", "", EXAMPLE.read_text())), {})


def test_the_example_has_every_key_and_states_its_true_default() -> None:
    stated = Stated()
    seen: dict[type, set[str]] = {}
    for kind, live, everything in tables(Config, stated.live, stated.all):
        seen.setdefault(kind, set()).update(everything)
        for field in msgspec.structs.fields(kind):
            default = default_of(field)
            name = field.encode_name
            if name in everything and name not in live and default is not None and not structs_in(field.type):
                told = msgspec.to_builtins(default, enc_hook=plain)
                assert everything[name] == (list(told) if isinstance(told, tuple) else told), name
            if name in live and not structs_in(field.type):
                assert default in (None, ()), f"{name} has a default; write it as #{name} = ..."
    for kind, names in seen.items():
        assert names == {field.encode_name for field in msgspec.structs.fields(kind)}, kind.__name__
    schema = json_schema(Config)
    assert {kind.__name__ for kind in seen} == set(typing.cast(dict[str, object], schema["$defs"]))


@pytest.mark.parametrize(
    ("backend", "redis", "told"),
    [
        ("http://127.0.0.1:8000", "redis://shared", 1),
        ("127.0.0.1:8001", "redis://shared", 1),
        ("http://localhost:8000", "redis+sentinel://a,b/main", 1),
        ("http://[::1]:8000", "redis://127.0.0.1", 0),
        ("http://triton:8000", "redis://shared", 0),
    ],
)
def test_sidecars_that_would_share_what_other_servers_say_are_warned(
    write: Write, backend: str, redis: str, told: int
) -> None:
    kind = "http" if backend.startswith("http") else "grpc"
    text = f"[backends.gpu]\n{kind} = ['{backend}']\n[routes.r]\ntiers = [{{ backend = 'gpu', model = 'm' }}]\n"
    warnings = read(write(f"{text}cache = {{ ttl = '1m', second = '{redis}' }}\n"), {}).warnings
    assert [line.partition(":")[0] for line in warnings] == ["routes.r.cache.second"] * told
