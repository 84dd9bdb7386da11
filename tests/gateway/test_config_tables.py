"""Tables in a configuration: defaults, and every fault with its key and without a password."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from cache.arena import ROWS_MIN
from cache.table import Lives, NearTable
from gateway.config_tables import TableConfig
from gateway.sources import ConfigError, load, read
from gateway.units import Seconds

BASE = '[backends.gpu]\nhttp = ["http://127.0.0.1:8000"]\n'
REDIS = 'store = "redis://u:secret@h/0"\nkey = "user:{id}"\n'
ROW = 'shape = [4]\nttl = "1m"\n'


def written(folder: Path, table: str) -> str:
    path = folder / "tailrace.toml"
    path.write_text(f"{BASE}[tables.t]\n{table}")
    return str(path)


def test_a_small_table_has_safe_defaults(tmp_path: Path) -> None:
    table = load(written(tmp_path, REDIS + ROW), {}).tables["t"]
    assert (table.default, table.coherence, table.max_stale, table.timeout) == ("error", "ttl", 0.0, 0.02)
    assert table.redis is not None
    assert table.redis.credentials.password == "secret"
    assert table.lmdb == ""
    assert table.numbers == 4


@pytest.mark.parametrize(("given", "default"), [('"zeros"', "zeros"), ("1.5", 1.5), ("3", 3.0), ("-1", -1.0)])
def test_defaults(tmp_path: Path, given: str, default: object) -> None:
    assert load(written(tmp_path, REDIS + ROW + f"default = {given}"), {}).tables["t"].default == default


def test_files_are_named_from_the_configurations_folder(tmp_path: Path) -> None:
    table = load(written(tmp_path, 'store = "lmdb:features"\nkey = "{id}"\n' + ROW), {}).tables["t"]
    assert table.lmdb == str(tmp_path / "features")
    tls = 'store = "rediss://h"\nkey = "{id}"\ntls = { ca = "ca.pem" }\n'
    files = load(written(tmp_path, tls + ROW), {}).tables["t"].tls
    assert files is not None
    assert (files.ca, files.key) == (str(tmp_path / "ca.pem"), None)


def test_a_password_from_outside(tmp_path: Path) -> None:
    environ = {"TAILRACE_TABLES__T__STORE": "redis://:other@h", "TAILRACE_TABLES__T__TTL": "2m"}
    table = load(written(tmp_path, REDIS + ROW), environ).tables["t"]
    assert table.redis is not None
    assert table.redis.credentials.password == "other"
    assert table.ttl == Seconds(120)


FEAST = 'store = "redis://h"\nfeast = { project = "p", view = "v", join_key = "j", features = ["f"] }\n'
FAULTS = [
    (ROW, "store: is required"),
    ('store = "redis://h"\n' + ROW, "key: is required: how the store names a row"),
    (REDIS + 'ttl = "1m"\n', "shape: is required"),
    (REDIS + "shape = [4]\n", "ttl: is required"),
    ('store = "http://u:secret@h"\nkey = "{id}"\n' + ROW, "store: is none of redis://HOST:PORT/DB"),
    ('store = "redis://u:secret@a,b"\nkey = "{id}"\n' + ROW, "store: names several servers"),
    ('store = "lmdb:"\nkey = "{id}"\n' + ROW, "store: names no file"),
    ('store = "redis://h"\nkey = "user"\n' + ROW, "key: 'user' must have {id} in it, once"),
    (
        'store = "lmdb:x"\nids = "text"\nid_bytes_max = 255\nkey = "' + "k" * 300 + '{id}"\n' + ROW,
        "key: may come to 555",
    ),
    ('store = "lmdb:x"\nkey = "{id}"\ncoherence = "tracking"\n' + ROW, 'coherence: is "tracking", which only Redis'),
    ('store = "lmdb:x"\nkey = "{id}"\nfields = ["a", "b", "c", "d"]\n' + ROW, "fields: is for a store in Redis"),
    (REDIS + 'tls = { ca = "x" }\n' + ROW, "tls: is given, and the store is not asked over TLS"),
    ('store = "rediss://h"\nkey = "{id}"\ntls = { key = "x" }\n' + ROW, "tls.key: and certificate belong together"),
    (REDIS + 'shape = []\nttl = "1m"\n', "shape: needs at least one number"),
    (REDIS + 'shape = [0]\nttl = "1m"\n', "shape[0]: Expected int >= 1"),
    (REDIS + 'shape = [1024, 1025]\nttl = "1m"\n', "shape: is 1049600 numbers a row"),
    (REDIS + 'shape = [100000]\nttl = "1m"\nbytes_max = "1MiB"\n', "bytes_max: is 1MiB; a near cache of rows"),
    (REDIS + 'shape = [16384]\nttl = "1m"\nbytes_max = "3MiB"\ndtype = "float16"\n', "bytes_max: is 3MiB; a near"),
    (REDIS + 'shape = [1048576]\nttl = "1m"\n', "bytes_max: is 256MiB; a near cache of rows of 1048576 takes 259MiB"),
    (
        'store = "redis://h"\nshape = [1]\nttl = "1m"\n'
        'feast = { project = "p", view = "v", join_key = "k", features = ["a", "b"] }\n',
        "shape: is 1 numbers a row, and feast.features names 2",
    ),
    (REDIS + ROW + "default = 1e300\n", "default: must be a finite number of float32"),
    (REDIS + ROW + 'fields = ["a"]\n', "shape: must be [1]"),
    (REDIS + ROW + 'fields = ["a", "a", "b", "c"]\n', "fields: names a twice"),
    (REDIS + ROW + 'fields = ["a", "", "b", "c"]\n', "fields: has an empty name"),
    (REDIS + ROW + 'fields = ["a", "d", "b", "c"]\ndtype = "int8"\n', "dtype: is int8, which is a form of raw"),
    (REDIS + ROW + 'dtype = "float64"\n', "dtype: 'float64' is not one of float32, float16, int8"),
    (REDIS + ROW + 'default = "mode"\n', "default: Invalid enum value 'mode'"),
    (REDIS + ROW + "default = nan\n", "default: must be a finite number"),
    (REDIS + ROW + "default = 2.0\nbounds = { max = 1.0 }\n", "default: is 2, which bounds do not allow"),
    (REDIS + ROW + "bounds = { min = 2.0, max = 1.0 }\n", "bounds.min: is above max"),
    (REDIS + ROW + "bounds = { max = inf }\n", "bounds.max: must be a finite number"),
    (REDIS + 'shape = [4]\nttl = "0s"\n', "ttl: is 0"),
    (REDIS + ROW + 'max_stale = "4000d"\n', "max_stale: is 4000d; it must be at most"),
    (REDIS + ROW + 'timeout = "1us"\n', "timeout: is 1us; it must be at least 1ms"),
    (REDIS + ROW + 'connect_timeout = "1ms"\n', "connect_timeout: is 1ms; it must be at least 10ms"),
    (REDIS + ROW + 'coherent_within = "10ms"\n', "coherent_within: is 10ms; it must be at least 100ms"),
    (REDIS + ROW + "keys_per_call_max = 0\n", "keys_per_call_max: Expected int >= 1"),
    (REDIS + ROW + "feast_view = 0\n", "feast_view: unknown key"),
    (FEAST + 'key = "{id}"\n' + ROW, "key: is made as Feast makes it"),
    (FEAST + 'fields = ["a", "b", "c", "d"]\n' + ROW, "fields: are Feast's features"),
    (FEAST.replace('"p"', '""') + ROW, "feast.project: must not be empty"),
    (FEAST.replace('["f"]', "[]") + ROW, "feast.features: needs at least one name"),
    (FEAST + 'dtype = "int8"\n' + ROW, "dtype: is int8"),
]


@pytest.mark.parametrize(("table", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_a_fault_is_the_only_one_and_names_its_key(tmp_path: Path, table: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, table), {})
    (line,) = refused.value.faults
    assert line.startswith(f"tables.t.{fault}")
    assert "secret" not in line


def test_that_no_route_joins_a_table_is_told(tmp_path: Path) -> None:
    (told,) = read(written(tmp_path, REDIS + ROW), {}).warnings
    assert told.startswith("tables.t: no route joins it")


@pytest.mark.parametrize(
    ("numbers", "more", "told"),
    [
        (2**18 + 1, '[snapshot]\npath = "s"\n', True),
        (2**18, '[snapshot]\npath = "s"\n', False),
        (2**18 + 1, "", False),  # nothing is copied
    ],
)
def test_that_no_row_fits_in_a_copy_is_told(tmp_path: Path, numbers: int, more: str, told: bool) -> None:
    path = written(tmp_path, f"{REDIS}shape = [{numbers}]\nttl = '1m'\n{more}")
    warnings = [line for line in read(path, {}).warnings if line.startswith("tables.t.snapshot: ")]
    assert len(warnings) == told


def test_feasts_table(tmp_path: Path) -> None:
    assert load(written(tmp_path, FEAST + ROW), {}).tables["t"].key is None


@pytest.mark.parametrize(("ids", "datatype", "takes"), [("integer", "BYTES", "INT64"), ("text", "INT64", "BYTES")])
def test_an_entity_is_asked_for_as_feast_wrote_it(tmp_path: Path, ids: str, datatype: str, takes: str) -> None:
    """7 and "7" are one id of a table, and two of Feast's: one of them would be held absent for the other."""
    bound = "" if ids == "integer" else "id_bytes_max = 15\n"
    inputs = "{ x = { parts = [{ entity = 'u', table = 't' }] } }"

    def text(datatype: str) -> str:
        told = "tiers = [{ backend = 'gpu', model = 'm' }]\nfeatures = { entities = { u = { many = true, "
        told += f"datatype = '{datatype}' }} }}, inputs = {inputs} }}\n"
        return f"{FEAST}{ROW}ids = '{ids}'\n{bound}[routes.r]\n{told}"

    load(written(tmp_path, text(takes)), {})
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text(datatype)), {})
    (line,) = refused.value.faults
    assert line.startswith(f"routes.r.features.entities.u.datatype: must be {takes}: ids of tables.t are {ids}")


@pytest.mark.parametrize("numbers", [1, 3, 1000, 16_384, 262_144])
@pytest.mark.parametrize("ids", ["integer", "text"])
def test_the_least_that_is_taken_is_enough_and_less_is_not(numbers: int, ids: Literal["integer", "text"]) -> None:
    """A near cache is made of what the configuration lets through: it must not raise then."""
    table = TableConfig("redis://h", (numbers,), Seconds.parse("1m"), "{id}", ids)
    least = table.near(2**20).bytes_min
    lives = Lives(1.0, 1.0, 1.0)
    assert NearTable(table.near(least), lives, b"seed").capacity >= ROWS_MIN
    with pytest.raises(ValueError, match="rows"):
        NearTable(table.near(int(0.97 * least)), lives, b"seed")
