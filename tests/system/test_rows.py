"""Rows by the real Triton: what comes of a batch is what Triton says of the whole of it, and it is asked for the
missing rows alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from tritonclient import http as client
from tritonclient.utils import np_to_triton_dtype

ROWS_MAX = 256
EXAMPLES = 80
DTYPES: Mapping[str, Any] = {
    "bool": np.bool_, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64, "fp16": np.float16, "fp32": np.float32,
    "fp64": np.float64, "bf16": bfloat16, "bytes": np.object_,
}  # fmt: skip
# What is asked is any bits, and some of them are a NaN of BF16.
CACHE = {"ttl": "1h", "max_stale": "1h", "rows": True, "nan": True}
ROUTE = {"tiers": [{"backend": "b", "model": "rowwise"}], "cache": CACHE}


def column(kind: str, row: int, width: int) -> np.ndarray:
    """The values of one row of an input: the same for the same number."""
    chance = random.Random(f"{kind} {row} {width}")
    if kind == "bytes":
        return np.array([chance.randbytes(chance.randrange(5)) for _ in range(width)], object)
    size = width * np.dtype(DTYPES[kind]).itemsize
    if kind == "bool":
        return np.array([chance.random() < 0.5 for _ in range(width)])
    if kind.startswith("fp"):
        values = [chance.choice([0.0, -0.0, 1.5, chance.uniform(-9, 9)]) for _ in range(width)]
        return np.array(values, DTYPES[kind])
    return np.frombuffer(chance.randbytes(size), DTYPES[kind])  # of BF16 too, NaN with any payload


def plain(values: np.ndarray) -> object:
    """What makes two columns of one kind and width the same."""
    return values.tolist() if values.dtype == object else values.tobytes()


def asked(inputs: Mapping[str, int], rows: list[int]) -> list[client.InferInput]:
    found = []
    for kind, width in inputs.items():
        values = np.stack([column(kind, row, width) for row in rows])
        tensor = client.InferInput(f"{kind}_in", values.shape, np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        found.append(tensor)
    return found


def told(answer: client.InferResult) -> dict[str, bytes]:
    """Each output's bytes as they came."""
    document = answer.get_response()
    found = {}
    for output in document["outputs"]:
        values = answer.as_numpy(output["name"])
        flat = [bytes(value) for value in values.ravel()] if values.dtype == object else values.tobytes()
        found[output["name"]] = repr((output["datatype"], output["shape"], flat)).encode()
    return found


@pytest.fixture
def gateway(gateway_factory: Callable[..., Any], triton: Any) -> Any:
    return gateway_factory({"backends": {"b": {"http": [triton.http_url]}}, "routes": {"rows": ROUTE}})


def test_random_batches_are_what_triton_says_of_them(gateway: Any, triton: Any, counting: Callable[..., Any]) -> None:
    through = client.InferenceServerClient(gateway.http_address)
    direct = client.InferenceServerClient(triton.http_address)
    seen: dict[tuple[tuple[str, int], ...], set[int]] = {}
    kept = [0]

    batches = st.tuples(
        st.dictionaries(st.sampled_from(sorted(DTYPES)), st.integers(1, 3), min_size=1, max_size=3),
        st.integers(0, 2**32),
        st.one_of(st.integers(1, 8), st.integers(1, ROWS_MAX)),
        st.sampled_from([4, 40, 400]),
    )

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
    @given(batches)
    @example(({"bf16": 3}, 1, 100, 40))
    @example(({"bf16": 3}, 2, 100, 400))
    @example(({"bf16": 1, "bytes": 2, "bool": 1}, 3, 200, 100))
    def holds(batch: tuple[dict[str, int], int, int, int]) -> None:
        inputs, seed, size, numbers = batch
        rows = [random.Random(f"{seed} {place}").randrange(numbers) for place in range(size)]
        known = seen.setdefault(tuple(sorted(inputs.items())), set())
        columns = {row: [column(kind, row, width) for kind, width in sorted(inputs.items())] for row in set(rows)}
        distinct = {repr([plain(values) for values in columns[row]]) for row in rows}
        with counting(triton, "rowwise") as counted:
            answer = told(through.infer("rows", asked(inputs, rows)))
        missing = distinct - known
        assert counted.rows == len(missing)
        kept[0] += len(distinct) - len(missing)
        known |= distinct
        assert answer == told(direct.infer("rowwise", asked(inputs, rows)))

    holds()
    assert kept[0], "no example had a row that was known"


def test_the_same_batch_twice_and_a_batch_that_is_mostly_known(
    gateway: Any, triton: Any, counting: Callable[..., Any]
) -> None:
    through = client.InferenceServerClient(gateway.http_address)
    inputs = {"int64": 2, "bytes": 1}
    with counting(triton, "rowwise") as counted:
        through.infer("rows", asked(inputs, list(range(100))))
    assert (counted.requests, counted.rows) == (1, 100)
    with counting(triton, "rowwise") as counted:
        again = through.infer("rows", asked(inputs, list(range(99, -1, -1))))
        said = through.infer("rows", asked(inputs, list(range(100))))
    assert counted.requests == 0
    assert told(again) != told(said)
    with counting(triton, "rowwise") as counted:
        through.infer("rows", asked(inputs, list(range(10, 110))))
    assert (counted.requests, counted.rows) == (1, 10)
    assert gateway.metric("tailrace_row_entries", route="rows") == 110
    assert gateway.metric("tailrace_rows_kept_total", route="rows") == 90
