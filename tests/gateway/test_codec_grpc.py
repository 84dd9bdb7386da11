"""The gRPC door's codec: problems as statuses, provenance as metadata, peers, and one digest for both wires."""

from __future__ import annotations

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway.admission.auth import Caller
from gateway.codec import grpc as codec
from gateway.codec import http as http_codec
from gateway.config import CacheConfig, TierConfig
from gateway.config import Route as RouteConfig
from gateway.problem import Problem, Refused, deadline_exceeded, forbidden, model_failed, quota, unavailable
from gateway.route import Route
from gateway.units import Seconds
from tiers.inference import InferRequest, Provenance, Tensor
from tiers.v2.proto import encode_request
from tiers.v2.proto_response import renamed_in_stream
from tiers.v2.request import encode_request as encode_http


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (Problem("invalid", 400, "t", "d"), "INVALID_ARGUMENT"),
        (Problem("unauthenticated", 401, "t", "d"), "UNAUTHENTICATED"),
        (forbidden("d"), "PERMISSION_DENIED"),
        (Problem("not-found", 404, "t", "d"), "NOT_FOUND"),
        (Problem("too-large", 413, "t", "d"), "RESOURCE_EXHAUSTED"),
        (quota("d", 1.0), "RESOURCE_EXHAUSTED"),
        (unavailable("d"), "UNAVAILABLE"),
        (deadline_exceeded("d"), "DEADLINE_EXCEEDED"),
        (model_failed("d"), "INTERNAL"),
        (Problem("invalid", 501, "t", "d"), "UNIMPLEMENTED"),
        (Problem("x", 418, "t", "d"), "UNKNOWN"),
    ],
)
def test_problems_have_the_status_that_triton_would_use(problem: Problem, status: str) -> None:
    assert codec.status_of(problem) is grpc.StatusCode[status]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:51234", "10.0.0.7"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
        ("unix:", ""),
        ("unix:/run/x.sock", ""),
    ],
)
def test_peers_are_addresses(peer: str, address: str) -> None:
    assert codec.address_of(peer) == address


def test_metadata_that_is_given_twice_or_is_no_text_is_refused() -> None:
    assert codec.only([("a", "1"), ("b", "2")], "a") == "1"
    for metadata in ([("a", "1"), ("a", "1")], [("a", "\x00")], [("a", b"\xff")]):
        with pytest.raises(Refused):
            codec.only(metadata, "a")


def test_what_is_of_grpc_or_the_connection_is_not_passed_on() -> None:
    kept = (("x-one", "1"), ("trace-bin", b"\x00"))
    given = (*kept, ("grpc-timeout", "1S"), ("user-agent", "u"), ("te", "trailers"), ("authorization", "k"))
    assert codec.passed_on(given, frozenset({"authorization"})) == kept


def test_trailers_say_what_the_header_fields_say() -> None:
    told = dict(codec.trailers(Provenance("stale", "dead", "m", "1", 7.0, -3.0), None, problem=unavailable("d", 2.0)))
    assert told["age"] == "7"
    assert told["retry-after"] == "2"
    assert told["cache-status"].startswith("tailrace; hit; ttl=-3")


@pytest.mark.parametrize("model", ["other", "é"])
def test_answers_of_a_stream_get_another_name_and_errors_stay_as_they_are(model: str) -> None:
    answer = pb.ModelStreamInferResponse()
    answer.infer_response.model_name = "m"
    answer.infer_response.raw_output_contents.append(b"1")
    again = pb.ModelStreamInferResponse.FromString(renamed_in_stream(answer.SerializeToString(), model))
    assert (again.infer_response.model_name, again.infer_response.raw_output_contents) == (model, [b"1"])
    error = codec.streamed_error(forbidden("no"), "7")
    assert renamed_in_stream(error, model) == error
    parsed = pb.ModelStreamInferResponse.FromString(error)
    assert (parsed.error_message, parsed.infer_response.id) == ("no", "7")


class _Nobody:
    """A home that is never asked."""

    pool = catalog = None


def test_equal_tensors_have_one_digest_by_both_doors() -> None:
    config = RouteConfig((TierConfig("b", "m"),), CacheConfig(Seconds(60)))
    route = Route("r", config, [_Nobody()], 2**20)  # type: ignore[list-item]  # nothing is asked
    caller = Caller("c", "t")
    tensor = Tensor("x", "FP32", (1, 2), b"12345678")
    request = InferRequest("r", (tensor,), parameters={"n": 3, "ratio": 0.5, "big": 2**63}, id="7")
    parts, length = encode_http(request)
    by_http, _ = http_codec.decode(b"".join(parts), "r", "", str(length), route.body_limits)
    reader = codec.RequestReader()
    for _ in range(2):  # as it comes first, and as it is known again
        by_grpc = codec.decode(codec.sketch(encode_request(request)), reader)
        assert route.digest(caller, by_grpc) == route.digest(caller, by_http)


def test_what_is_malformed_is_refused_with_its_words() -> None:
    with pytest.raises(Refused, match=r"ends .* bytes after the message") as caught:
        codec.sketch(b"\x0a\x7f")
    assert caught.value.problem.status == 400
