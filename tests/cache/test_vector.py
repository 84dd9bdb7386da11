"""Values to rows and back: each form, each fault at its own key, and nothing lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache.stores.frame import framed, unframed
from cache.stores.store import StoreError
from cache.vector import Bounds, Dtype, Scalars, Vectors

ANY = Bounds()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(data=st.data())
def test_what_is_encoded_is_decoded(dtype: Dtype, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    count = data.draw(st.integers(0, 5))
    width = 16 if dtype == "float16" else 32
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=width)
    rows = data.draw(hnp.arrays(np.dtype(dtype), (count, *shape), elements=numbers))
    codec = Vectors(dtype, shape, ANY)
    decoded = codec.decode(codec.encode(rows))
    assert decoded.rows.tobytes() == rows.tobytes()
    assert (decoded.rows.dtype, decoded.rows.shape) == (rows.dtype, rows.shape)
    assert decoded.found.all()
    assert not decoded.faults


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-1000, 1000, width=32)))
def test_int8_loses_half_a_step_at_most(rows: np.ndarray) -> None:
    codec = Vectors("int8", (5,), ANY)
    values = codec.encode(rows)
    assert [len(value) for value in values] == [9, 9, 9]
    decoded = codec.decode(values)
    assert decoded.rows.dtype == np.float32
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(decoded.rows - rows) <= step * 0.51 + 1e-30).all()


def test_bytes_are_little_endian() -> None:
    assert Vectors("float32", (2,), ANY).encode(np.array([[1.0, -2.0]], ">f4")) == [b"\0\0\x80?\0\0\0\xc0"]
    assert Vectors("int8", (2,), ANY).decode([b"\0\0\0?\x04\xff"]).rows.tolist() == [[2.0, -0.5]]


def test_each_fault_costs_its_own_key() -> None:
    codec = Vectors("float32", (2,), Bounds(-1.0, 1.0))
    good = np.array([0.5, -1.0], "<f4").tobytes()
    bad = [np.array(row, "<f4").tobytes() for row in ([0.0, 1.5], [np.nan, 0.0], [np.inf, 0.0])]
    lost = StoreError("wrong-type")
    decoded = codec.decode([good, b"", *bad, None, lost, good])
    assert decoded.found.tolist() == [True, False, False, False, False, False, False, True]
    assert decoded.rows.tolist() == [[0.5, -1.0], *[[0.0, 0.0]] * 6, [0.5, -1.0]]
    assert {index: fault.kind for index, fault in decoded.faults.items()} == {
        1: "corrupt", 2: "corrupt", 3: "corrupt", 4: "corrupt", 6: "wrong-type",
    }  # fmt: skip
    assert "has 0 bytes, and a row has 8" in str(decoded.faults[1])
    assert "beyond -1 to 1" in str(decoded.faults[2])
    assert "has nan" in str(decoded.faults[3])


def test_a_broken_scale_is_a_broken_value() -> None:
    decoded = Vectors("int8", (2,), ANY).decode([np.float32(math.nan).tobytes() + b"\1\2", b"\0\0\0\0\1\2"])
    assert decoded.found.tolist() == [False, True]


@pytest.mark.parametrize(
    "codec", [Vectors("float32", (3,), ANY), Vectors("int8", (3,), ANY), Scalars(3, "float32", ANY)]
)
@given(values=st.lists(st.one_of(st.none(), st.binary(max_size=20)), max_size=6))
def test_hostile_values_are_faults(codec: Vectors, values: list[bytes | None]) -> None:
    decoded = codec.decode(values)
    assert len(decoded.rows) == len(decoded.found) == len(values)
    assert np.isfinite(decoded.rows).all()
    for index, value in enumerate(values):
        assert decoded.found[index] == (value is not None and index not in decoded.faults)


def test_scalars_are_decimal_text() -> None:
    codec = Scalars(2, "float32", Bounds(high=100))
    values = [framed([b"1.5", b" -2e1 "]), framed([b"x", b"1"]), framed([None, b"1"]), framed([b"nan", b"1"])]
    values += [framed([b"1", b"101"]), framed([b"1e999", b"1"]), framed([b"1e39", b"1"]), framed([b"1"]), b"\xff"]
    decoded = codec.decode(values)
    assert decoded.rows[0].tolist() == [1.5, -20.0]
    assert decoded.found.tolist() == [True] + [False] * 8
    assert "field number 1 is b'x'" in str(decoded.faults[1])
    assert "has no field number 1" in str(decoded.faults[2])
    (value,) = codec.encode(np.array([[0.1, 3.0]], np.float32))
    assert codec.decode([value]).rows.tolist() == np.array([[0.1, 3.0]], np.float32).tolist()


@given(st.lists(st.one_of(st.none(), st.binary(max_size=5)), max_size=5), st.binary(max_size=3))
def test_frames(fields: list[bytes | None], more: bytes) -> None:
    value = framed(fields)
    assert unframed(value, len(fields)) == fields
    for cut in range(len(value)):
        with pytest.raises(StoreError):
            unframed(value[:cut], len(fields))
    if more:
        with pytest.raises(StoreError):
            unframed(value + more, len(fields))
