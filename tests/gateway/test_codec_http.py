"""The HTTP wire: the table of malformed requests, codings, negotiation, and provenance headers."""

import contextlib
import gzip
import math
import random
import runpy
import zlib
from pathlib import Path

import pytest

from gateway.admission.validate import TensorRule, Validator
from gateway.codec.http import (
    BodyLimits,
    CacheDirectives,
    decode,
    deflate_body,
    encode,
    hit_lines,
    inflate,
    negotiate,
    parse_cache_control,
    parse_json_length,
    provenance_headers,
)
from gateway.problem import Refused
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferResponse, Provenance, Tensor
from tiers.v2.request import WireForm

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "cases" / "malformed.py"))
LIMITS = BodyLimits(bytes_max=TABLE["LIMITS"]["bytes_max"])
RULES = {name: TensorRule(**bounds) for name, bounds in TABLE["RULES"].items()}


def facts():
    def fact(member):
        return TensorFact(
            member["name"], member["datatype"], tuple(member["shape"]), member.get("optional", False)
        )

    model = TABLE["MODEL"]
    return ModelFacts(
        name=model["name"],
        versions=("1",),
        inputs=tuple(fact(member) for member in model["inputs"]),
        outputs=tuple(fact(member) for member in model["outputs"]),
        max_batch=model["max_batch"],
        sequence=False,
        decoupled=False,
    )


def admit(headers, body):
    inflated = inflate(body, headers.get("Content-Encoding"), LIMITS.bytes_max)
    request, _ = decode(inflated, "typed", "", headers.get("Inference-Header-Content-Length"), LIMITS)
    Validator(RULES, None).check(request, facts())
    return request


@pytest.mark.parametrize("case", TABLE["CASES"], ids=lambda case: case["name"])
def test_malformed_requests_get_the_status_and_a_message_that_names_the_fault(case):
    with pytest.raises(Refused) as refusal:
        admit(case["headers"], case["body"])
    problem = refusal.value.problem
    assert problem.status == case["status"], problem
    assert case["word"] in problem.detail
    assert len(problem.body()) < 2048


def test_table_is_large_and_its_names_are_unique():
    names = [case["name"] for case in TABLE["CASES"]]
    assert len(names) == len(set(names)) >= 60


def test_the_good_request_of_the_table_is_admitted():
    assert admit({}, TABLE["GOOD"]).inputs[0].shape == (1, 4)
    assert admit({"Content-Encoding": "gzip"}, TABLE["ZIPPED"]).inputs[0].shape == (1, 4)


@pytest.mark.parametrize("case", TABLE["CASES"], ids=lambda case: case["name"])
def test_mutations_of_malformed_requests_are_admitted_or_refused_never_a_crash(case):
    chance = random.Random(case["name"])
    for _ in range(30):
        body = bytearray(case["body"][:4096])
        for _ in range(chance.randrange(1, 4)):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        with contextlib.suppress(Refused):
            admit(case["headers"], bytes(body))


BARE = zlib.compressobj(wbits=-15)
PLAIN = bytes(range(256)) * 20


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("identity", PLAIN),
        ("gzip", gzip.compress(PLAIN)),
        ("GZip ", gzip.compress(PLAIN)),
        ("x-gzip", gzip.compress(PLAIN)),
        ("deflate", zlib.compress(PLAIN)),
        ("deflate", BARE.compress(PLAIN) + BARE.flush()),
    ],
)
def test_inflate_reads_each_coding_up_to_exactly_the_limit(coding, body):
    limit = max(len(PLAIN), len(body))
    assert bytes(inflate(body, coding, limit)) == PLAIN
    with pytest.raises(Refused) as refusal:
        inflate(body, coding, len(PLAIN) - 1)
    assert refusal.value.problem.status == 413


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_deflated_parts_inflate_again_and_every_cut_is_refused(encoding):
    packed = deflate_body([b"abc", memoryview(b"def"), b""], encoding)
    assert packed == deflate_body([b"abcdef"], encoding)
    assert inflate(packed, encoding, 100) == b"abcdef"
    for cut in range(len(packed)):
        with pytest.raises(Refused):
            inflate(packed[:cut], encoding, 100)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("GZIP;Q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("br", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=1.0", "gzip"),
        ("identity;q=0", None),
        ("gzip;q=2", None),
        ("gzip;q=nan, deflate", "deflate"),
        ("gzip;level=9", None),
        (",,;,=", None),
        ("x-gzip", "gzip"),
    ],
)
def test_negotiate(accept, coding):
    assert negotiate(accept) == coding


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, CacheDirectives()),
        ("no-cache", CacheDirectives(no_cache=True)),
        ("No-Store , max-age=5", CacheDirectives(no_store=True, max_age=5)),
        ("only-if-cached, max-stale", CacheDirectives(only_if_cached=True, max_stale=math.inf)),
        ("max-stale=30", CacheDirectives(max_stale=30)),
        ('max-stale="30"', CacheDirectives(max_stale=30)),
        ("max-stale=30, max-stale=10", CacheDirectives(max_stale=10)),
        ("max-stale=-1", CacheDirectives()),
        ("max-age=abc", CacheDirectives(max_age=0)),
        ("max-age", CacheDirectives(max_age=0)),
        ("max-age=99999999999999", CacheDirectives(max_age=2**31)),
        ('ext="no-cache, max-age=1"', CacheDirectives()),
        ("xno-cache", CacheDirectives()),
    ],
)
def test_cache_control(value, expected):
    assert parse_cache_control(value) == expected


def test_json_length_is_digits_only():
    assert parse_json_length(None) is None
    assert parse_json_length("0") == 0
    for text in ("", " 1", "1 ", "１", "1_0", "0x1", "1e3"):
        with pytest.raises(Refused):
            parse_json_length(text)


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        (Provenance(cache="hit", reason="fresh", ttl_left=590.7), "tailrace; hit; ttl=590"),
        (
            Provenance(cache="stale", reason="unreachable", ttl_left=-11.2),
            "tailrace; hit; ttl=-12; detail=unreachable",
        ),
        (Provenance(cache="miss", reason="miss", stored=True), "tailrace; fwd=miss; stored"),
        (Provenance(cache="miss", stored=True, collapsed=True), "tailrace; fwd=miss; stored; collapsed"),
        (Provenance(cache="miss", reason="no-cache"), "tailrace; fwd=request; detail=no-cache"),
        (Provenance(cache="miss", reason="stale", stored=True), "tailrace; fwd=stale; stored"),
        (Provenance(cache="bypass", reason="sequence"), "tailrace; fwd=bypass; detail=sequence"),
        (Provenance(cache="bypass", reason='a"b'), 'tailrace; fwd=bypass; detail="a\\"b"'),
    ],
)
def test_cache_status(provenance, expected):
    assert dict(provenance_headers(provenance, 0.001))["Cache-Status"] == expected


def test_provenance_is_a_structured_dictionary():
    provenance = Provenance(
        cache="stale", reason="unreachable", tier="large", version="3", age=12.9, ttl_left=-2.5, rows=8,
        rows_escalated=2, steps=("replica", "stale"), degraded=True,
    )  # fmt: skip
    fields = dict(provenance_headers(provenance, 0.0012345))
    assert fields["Age"] == "12"
    assert fields["Server-Timing"] in (
        "tailrace;dur=1.234, cache;desc=stale",
        "tailrace;dur=1.235, cache;desc=stale",
    )
    assert fields["Tailrace-Provenance"] == (
        'cache=stale, reason=unreachable, tier="large", version="3", age=12, rows=8, escalated=2, '
        "steps=(replica stale), degraded"
    )
    assert "Age" not in dict(provenance_headers(Provenance(), 0.0))
    other_replica = dict(provenance_headers(Provenance(steps=("replica",)), 0.0))["Tailrace-Provenance"]
    assert "steps=(replica)" in other_replica
    assert "degraded" not in other_replica  # as good an answer as the first replica's


@pytest.mark.parametrize("name", ["a\r\nX: y", 'q"uo\\te', "modèle", "x" * 9999, "\ud800", "\x7f\x00", "%41"])
def test_no_name_can_break_out_of_a_header(name):
    provenance = Provenance(
        cache="hit", reason=name, tier=name, version=name, steps=(name,), age=math.nan, ttl_left=math.inf
    )
    for field, value in provenance_headers(provenance, math.inf):
        assert field.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert len(value) < 4096


@pytest.mark.parametrize("tier", ["large", "%d", "modèle", 'q"uo\\te', "100%"])
def test_a_hits_lines_are_its_headers_with_places_for_its_numbers(tier: str) -> None:
    provenance = Provenance(cache="hit", reason="fresh", tier=tier, version="3", age=12.9, ttl_left=47.2, rows=2)
    expected = "".join(f"{name}: {value}\r\n" for name, value in provenance_headers(provenance))
    assert hit_lines(provenance) % (47, 12, 12) == expected.encode()


def test_display_string_is_percent_encoded():
    assert (
        'tier=%"mod%c3%a8le"' in dict(provenance_headers(Provenance(tier="modèle"), 0))["Tailrace-Provenance"]
    )


def test_encode_names_the_form_and_the_coding():
    response = InferResponse("m", "1", (Tensor("y", "UINT8", (2,), b"\1\2"),))
    parts, fields = encode(response, WireForm(), "7")
    assert fields == [("Content-Type", "application/json"), ("Vary", "Accept, Accept-Encoding")]
    plain = b"".join(parts)
    parts, fields = encode(response, WireForm(), "7", "gzip")
    assert inflate(parts[0], "gzip", 10**6) == plain
    assert ("Content-Encoding", "gzip") in fields
    parts, fields = encode(response, WireForm(binary_all=True), "")
    assert dict(fields)["Inference-Header-Content-Length"] == str(len(parts[0]))
    half = InferResponse("m", "1", (Tensor("y", "FP16", (1,), b"\0\0"),))
    with pytest.raises(Refused, match="FP16"):
        encode(half, WireForm(), "")
