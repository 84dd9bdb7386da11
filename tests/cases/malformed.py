"""Requests that must be refused, each with the status and a word that its message must hold.

One table for the codec, the validation and the whole gateway: load it with ``runpy.run_path``.
``MODEL`` describes the model they are for, ``RULES`` and ``LIMITS`` the route's bounds.
"""

import gzip
import json
import struct
import zlib

MODEL = {
    "name": "typed",
    "max_batch": 8,
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4], "optional": False},
        {"name": "ids", "datatype": "INT64", "shape": [-1, 2], "optional": True},
        {"name": "flag", "datatype": "BOOL", "shape": [-1, 1], "optional": True},
        {"name": "words", "datatype": "BYTES", "shape": [-1, -1], "optional": True},
        {"name": "half", "datatype": "FP16", "shape": [-1, 1], "optional": True},
        {"name": "small", "datatype": "INT8", "shape": [-1, 1], "optional": True},
        {"name": "count", "datatype": "UINT64", "shape": [-1, 1], "optional": True},
        {"name": "brain", "datatype": "BF16", "shape": [-1, 1], "optional": True},
        {"name": "wide", "datatype": "FP64", "shape": [-1, 1], "optional": True},
    ],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}
RULES = {
    "x": {"minimum": -1000.0, "maximum": 1000.0},
    "words": {"element_bytes_max": 16},
    "half": {},
    "brain": {},
    "wide": {},
}
LIMITS = {"bytes_max": 65536}

X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
ROW = struct.pack("<4f", 1, 2, 3, 4)


def tensor(**changes):
    """The good input x with some members changed; None takes a member away."""
    return {name: value for name, value in (X | changes).items() if value is not None}


def extra(name, datatype, shape, data):
    return {"inputs": [X, {"name": name, "datatype": datatype, "shape": shape, "data": data}]}


def text(message):
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def one(**changes):
    return {"inputs": [tensor(**changes)]}


def binary(message, tail, length=None):
    header = text(message)
    value = str(len(header) if length is None else length)
    return {"Inference-Header-Content-Length": value}, header + tail


def sized(size, shape=(1, 4)):
    return one(data=None, shape=list(shape), parameters={"binary_data_size": size})


def blob(name, datatype, shape, data):
    """x as JSON and one more input in binary."""
    more = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    return binary({"inputs": [X, more]}, data)


def raw(old, new):
    return text({"inputs": [X]}).replace(old, new)


def case(name, status, word, body, headers=None):
    return {"name": name, "status": status, "word": word, "headers": headers or {}, "body": text(body)}


def case_binary(name, status, word, pair):
    return case(name, status, word, pair[1], pair[0])


GOOD = text({"inputs": [X]})
ZIPPED = gzip.compress(GOOD, mtime=0)

CASES = [
    case("empty body", 400, "empty", b""),
    case("not json", 400, "JSON", b"hello"),
    case("truncated json", 400, "JSON", GOOD[:-3]),
    case("trailing json", 400, "JSON", GOOD + b"x"),
    case("top level array", 400, "object", b"[]"),
    case("top level null", 400, "object", b"null"),
    case("trailing comma", 400, "JSON", raw(b"}]}", b"}],}")),
    case("single quotes", 400, "JSON", b"{'inputs':[]}"),
    case("invalid utf-8 in a name", 400, "UTF-8", raw(b'"x"', b'"\xff"')),
    case("invalid utf-8 in an ignored member", 400, "UTF-8", raw(b'{"inputs"', b'{"z":"\xc0\xaf","inputs"')),
    case("utf-16 body", 400, "UTF-8", GOOD.decode().encode("utf-16")),
    case("lone surrogate", 400, "JSON", raw(b'"x"', b'"\\ud800x"')),
    case("control character in a string", 400, "JSON", raw(b'"x"', b'"\x01"')),
    case("NaN literal", 400, "JSON", raw(b"[1, 2, 3, 4]", b"[1, NaN, 3, 4]")),
    case("Infinity literal", 400, "JSON", raw(b"[1, 2, 3, 4]", b"[1, Infinity, 3, 4]")),
    case("deep json in data", 400, "nested", raw(b"[1, 2, 3, 4]", b"[" * 5000 + b"]" * 5000)),
    case("deep json never closed", 400, "nested", b'{"inputs":' + b"[" * 60000),
    case("deep objects in an ignored member", 400, "nested", b'{"z":' * 3000 + b"1" + b"}" * 3000),
    case("duplicate member", 400, "duplicate", raw(b'"name": "x"', b'"name": "x", "name": "ids"')),
    case("duplicate inputs member", 400, "duplicate", raw(b'{"inputs"', b'{"inputs": [], "inputs"')),
    case(
        "escaped duplicate member", 400, "duplicate", raw(b'"name": "x"', b'"name": "x", "n\\u0061me": "x"')
    ),
    case("duplicate parameter", 400, "duplicate", raw(b'{"inputs"', b'{"parameters":{"a":1,"a":2},"inputs"')),
    case("no inputs member", 400, "inputs", {}),
    case("inputs is an object", 400, "inputs", {"inputs": {}}),
    case("inputs empty", 400, "missing", {"inputs": []}),
    case("too many inputs", 400, "inputs", {"inputs": [tensor(name=f"x{i}") for i in range(300)]}),
    case("id is a number", 400, "id", {"id": 7, "inputs": [X]}),
    case("id too long", 400, "id", {"id": "7" * 5000, "inputs": [X]}),
    case("parameter null", 400, "null", {"inputs": [X], "parameters": {"a": None}}),
    case("priority below 0", 400, "priority", {"inputs": [X], "parameters": {"priority": -1}}),
    case("priority in words", 400, "priority", {"inputs": [X], "parameters": {"priority": "high"}}),
    case("timeout of a fraction", 400, "timeout", {"inputs": [X], "parameters": {"timeout": 1.5}}),
    case("sequence id of a fraction", 400, "sequence_id", {"inputs": [X], "parameters": {"sequence_id": 1.5}}),
    case("sequence start in words", 400, "sequence_start", {"inputs": [X], "parameters": {"sequence_start": "y"}}),
    case("NUL in a parameter's name", 400, "NUL", {"inputs": [X], "parameters": {"a\0b": 1}}),
    case(
        "classification below 0",
        400,
        "classification",
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
    ),
    case(
        "region that is no name",
        400,
        "shared_memory_region",
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"shared_memory_region": 5}}]},
    ),
    case("parameter array", 400, "parameters", {"inputs": [X], "parameters": {"a": [1]}}),
    case("parameter over 64 bits", 400, "64 bits", {"inputs": [X], "parameters": {"a": 2**64}}),
    case(
        "too many parameters",
        400,
        "parameters",
        {"inputs": [X], "parameters": {f"p{i}": i for i in range(99)}},
    ),
    case(
        "binary_data_output not bool", 400, "binary", {"inputs": [X], "parameters": {"binary_data_output": 1}}
    ),
    case("input without name", 400, "name", one(name=None)),
    case("input with empty name", 400, "name", one(name="")),
    case("input name too long", 400, "name", one(name="x" * 2000)),
    case("duplicate input", 400, "duplicate", {"inputs": [X, X]}),
    case("no datatype", 400, "datatype", one(datatype=None)),
    case("unknown datatype", 400, "datatype", one(datatype="FLOAT")),
    case("wrong datatype", 400, "must be FP32", one(datatype="INT32")),
    case("no shape", 400, "shape", one(shape=None)),
    case("shape is a string", 400, "shape", one(shape="1,4")),
    case("shape with a fraction", 400, "shape", one(shape=[1, 4.5])),
    case("shape with a bool", 400, "shape", one(shape=[True, 4])),
    case("negative dimension", 400, "negative", one(shape=[-1, 4])),
    case("two negative dimensions", 400, "negative", one(shape=[-1, -4])),
    case("shape product overflows", 400, "overflow", one(shape=[2**32, 2**32])),
    case("shape product wraps to right size", 400, "overflow", one(shape=[2**62 + 1, 4])),
    case("overflow hidden by a zero", 400, "overflow", one(shape=[0, 2**62, 2**62], data=[])),
    case("dimension over 64 bits", 400, "overflow", one(shape=[1, 2**70])),
    case("rank too high", 400, "rank", one(shape=[1] * 31 + [4])),
    case("wrong rank", 400, "rank", one(shape=[4])),
    case("wrong dimension", 400, "shape", one(shape=[2, 2])),
    case("batch of zero", 400, "batch", one(shape=[0, 4], data=[])),
    case("batch too large", 400, "batch", one(shape=[9, 4], data=[0] * 36)),
    case("inputs disagree on batch", 400, "agree", extra("flag", "BOOL", [2, 1], [True, False])),
    case("no data", 400, "data", one(data=None)),
    case("data is a number", 400, "array", one(data=1)),
    case("data is an object", 400, "array", one(data={})),
    case("one element short", 400, "elements", one(data=[1, 2, 3])),
    case("one element over", 400, "elements", one(data=[1, 2, 3, 4, 5])),
    case("nested unlike the shape", 400, "dimension", one(data=[[1, 2], [3, 4]])),
    case("nested too deep", 400, "nested", one(data=[[[1, 2, 3, 4]]])),
    case("ragged data", 400, "dimension", one(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3]])),
    case("mixed nesting", 400, "FP32", one(data=[1, [2, 3, 4]])),
    case("bool as float", 400, "FP32", one(data=[True, 2, 3, 4])),
    case("string as float", 400, "FP32", one(data=["1", 2, 3, 4])),
    case("null as float", 400, "FP32", one(data=[None, 2, 3, 4])),
    case("float beyond FP32", 400, "range", one(data=[1e39, 2, 3, 4])),
    case("float beyond FP64", 400, "range", raw(b"[1, 2", b"[1e400, 2")),
    case("int beyond INT8", 400, "INT8", extra("small", "INT8", [1, 1], [128])),
    case("int below INT64", 400, "INT64", extra("ids", "INT64", [1, 2], [0, -(2**63) - 1])),
    case("negative unsigned", 400, "UINT64", extra("count", "UINT64", [1, 1], [-1])),
    case("int over UINT64", 400, "UINT64", extra("count", "UINT64", [1, 1], [2**64])),
    case("int of 4000 digits", 400, "UINT64", extra("count", "UINT64", [1, 1], [10**4000])),
    case("fraction as int", 400, "INT64", extra("ids", "INT64", [1, 2], [1.5, 2])),
    case("bool as int", 400, "INT64", extra("ids", "INT64", [1, 2], [True, 2])),
    case("int as bool", 400, "BOOL", extra("flag", "BOOL", [1, 1], [1])),
    case("number as bytes", 400, "BYTES", extra("words", "BYTES", [1, 1], [1])),
    case("FP16 as json", 400, "FP16", extra("half", "FP16", [1, 1], [1.0])),
    case("BF16 as json", 400, "BF16", extra("brain", "BF16", [1, 1], [1.0])),
    case("unknown input", 400, "unexpected input", {"inputs": [X, tensor(name="nope")]}),
    case(
        "missing input",
        400,
        "missing input",
        {"inputs": [extra("flag", "BOOL", [1, 1], [True])["inputs"][1]]},
    ),
    case("value below minimum", 400, "at least", one(data=[-1001, 2, 3, 4])),
    case("value above maximum", 400, "at most", one(data=[1, 2, 3, 1000.5])),
    case("bytes element too long", 400, "17 bytes", extra("words", "BYTES", [1, 1], ["é" * 8 + "!"])),
    case("unknown output", 400, "nope", {"inputs": [X], "outputs": [{"name": "nope"}]}),
    case("duplicate output", 400, "twice", {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}),
    case("output without name", 400, "name", {"inputs": [X], "outputs": [{}]}),
    case("too many outputs", 400, "outputs", {"inputs": [X], "outputs": [{"name": "y"}] * 300}),
    case(
        "binary_data not bool",
        400,
        "binary",
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
    ),
    case("body too large", 413, "65536", GOOD + b" " * 65536),
    case("header length not a number", 400, "Length", GOOD, {"Inference-Header-Content-Length": "x"}),
    case("header length with sign", 400, "Length", GOOD, {"Inference-Header-Content-Length": "+10"}),
    case("header length negative", 400, "Length", GOOD, {"Inference-Header-Content-Length": "-1"}),
    case("header length fraction", 400, "Length", GOOD, {"Inference-Header-Content-Length": "10.0"}),
    case("header length empty", 400, "Length", GOOD, {"Inference-Header-Content-Length": ""}),
    case("header length over the body", 400, "Length", GOOD, {"Inference-Header-Content-Length": "99999"}),
    case("header length huge", 400, "Length", GOOD, {"Inference-Header-Content-Length": "9" * 400}),
    case("raw binary form", 400, "raw binary", ROW, {"Inference-Header-Content-Length": "0"}),
    case_binary("header length one short", 400, "JSON", binary(sized(16), ROW, len(text(sized(16))) - 1)),
    case_binary("header length one over", 400, "JSON", binary(sized(16), ROW, len(text(sized(16))) + 1)),
    case("binary without header length", 400, "bytes", sized(16)),
    case_binary("bytes one short", 400, "bytes", binary(sized(16), ROW[:-1])),
    case_binary("bytes one over", 400, "left over", binary(sized(16), ROW + b"x")),
    case_binary("size one short", 400, "16 bytes", binary(sized(15), ROW[:-1])),
    case_binary("size one over", 400, "16 bytes", binary(sized(17), ROW + b"x")),
    case_binary("size negative", 400, "binary_data_size", binary(sized(-16), ROW)),
    case_binary("size bool", 400, "binary_data_size", binary(sized(True), ROW[:1])),
    case_binary("size fraction", 400, "binary_data_size", binary(sized(16.0), ROW)),
    case_binary("size string", 400, "binary_data_size", binary(sized("16"), ROW)),
    case_binary("size huge", 400, "binary_data_size", binary(sized(2**63), ROW)),
    case_binary("size and data", 400, "both", binary(one(parameters={"binary_data_size": 16}), ROW)),
    case_binary("leftover after json input", 400, "left over", binary({"inputs": [X]}, b"\0")),
    case("shared memory and data", 400, "both", one(parameters={"shared_memory_region": "r"})),
    case_binary("bytes element overruns", 400, "says", blob("words", "BYTES", [1, 1], b"\x09\0\0\0hello")),
    case_binary(
        "bytes length overflows", 400, "says", blob("words", "BYTES", [1, 1], b"\xff\xff\xff\xffhello")
    ),
    case_binary("bytes length cut", 400, "bytes", blob("words", "BYTES", [1, 1], b"\x01\0\0")),
    case_binary("bytes element missing", 400, "elements", blob("words", "BYTES", [1, 2], b"\x04\0\0\0abcd")),
    case_binary("bytes element over", 400, "elements", blob("words", "BYTES", [1, 1], b"\0\0\0\0\0\0\0\0")),
    case_binary("bytes rest too short", 400, "length", blob("words", "BYTES", [1, 1], b"\0\0\0\0\0")),
    case_binary("NaN in FP32", 400, "finite", binary(sized(16), struct.pack("<4f", 1, 2, float("nan"), 4))),
    case_binary(
        "infinity in FP32", 400, "finite", binary(sized(16), struct.pack("<4f", 1, 2, float("inf"), 4))
    ),
    case_binary("NaN in FP16", 400, "finite", blob("half", "FP16", [1, 1], b"\x01\x7e")),
    case_binary("NaN in BF16", 400, "finite", blob("brain", "BF16", [1, 1], b"\xc0\x7f")),
    case_binary(
        "infinity in FP64", 400, "finite", blob("wide", "FP64", [1, 1], struct.pack("<d", float("-inf")))
    ),
    case("gzip truncated", 400, "truncated", ZIPPED[:-5], {"Content-Encoding": "gzip"}),
    case("gzip broken", 400, "gzip", b"\0" + ZIPPED, {"Content-Encoding": "gzip"}),
    case("gzip checksum", 400, "gzip", ZIPPED[:-8] + b"\0" * 8, {"Content-Encoding": "gzip"}),
    case("gzip with trailing bytes", 400, "followed", ZIPPED + b"x", {"Content-Encoding": "gzip"}),
    case("two gzip members", 400, "followed", ZIPPED * 2, {"Content-Encoding": "gzip"}),
    case("gzip of nothing", 400, "empty", gzip.compress(b""), {"Content-Encoding": "gzip"}),
    case("empty gzip", 400, "truncated", b"", {"Content-Encoding": "gzip"}),
    case("gzip bomb", 413, "65536", gzip.compress(bytes(10**7)), {"Content-Encoding": "gzip"}),
    case("deflate bomb", 413, "65536", zlib.compress(bytes(10**7)), {"Content-Encoding": "deflate"}),
    case("deflate truncated", 400, "truncated", zlib.compress(GOOD)[:-1], {"Content-Encoding": "deflate"}),
    case("deflate of garbage", 400, "deflate", b"\xff" * 50, {"Content-Encoding": "deflate"}),
    case("brotli", 415, "br", GOOD, {"Content-Encoding": "br"}),
    case("two codings", 415, "more than one", gzip.compress(ZIPPED), {"Content-Encoding": "gzip, gzip"}),
    case("unknown coding", 415, "rot13", GOOD, {"Content-Encoding": "rot13"}),
]
