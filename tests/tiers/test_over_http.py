"""RPCs said in HTTP: what of a caller's metadata goes on, and names that would lead somewhere else."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import zlib

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from degrade.deadline import Deadline
from tiers.backends.call import Call, Reply
from tiers.backends.over_grpc import asked_over_grpc
from tiers.backends.over_http import SpeaksHttp
from tiers.backends.rpc import Rpc, RpcRefused, RpcReply
from tiers.inference import Rejected, UpstreamError

NEVER = Deadline(math.inf)


class Replica:
    """Keeps what it is asked, and answers ``reply``."""

    url = "http://h"

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.calls: list[Call] = []

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        self.calls.append(call)
        return self.reply


def ask(reply: Reply, method: str, message, metadata=()):
    replica = Replica(reply)
    rpc = Rpc(method, message.SerializeToString(), metadata)
    answer = asyncio.run(SpeaksHttp(replica).unary(rpc, NEVER, 0.0))
    return replica.calls, getattr(pb, f"{method}Response").FromString(answer.message)


def test_metadata_become_header_fields_but_for_what_says_how_to_read_a_body() -> None:
    kept = (("x-one", "1"), ("authorization", "Bearer t"), ("via", "2.0 tailrace"))
    left = ("content-length", "transfer-encoding", "inference-header-content-length", "accept-encoding", "host")
    metadata = (*kept, *((name, "1") for name in left), ("trace-bin", b"1"))
    calls, _ = ask(Reply(200, (), b"{}"), "ServerMetadata", pb.ServerMetadataRequest(), metadata)
    assert calls == [Call("GET", "/v2", kept)]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a/../../repository/models/m/load", "a\\b", "a\0"])
def test_names_that_are_no_segment_of_a_path_are_of_no_model(name: str) -> None:
    for method, message in (
        ("ModelConfig", pb.ModelConfigRequest(name=name)),
        ("ModelMetadata", pb.ModelMetadataRequest(name="m", version=name or "..")),
        ("ModelInfer", pb.ModelInferRequest(model_name=name)),
        ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name or "..")),
    ):
        with pytest.raises(RpcRefused) as caught:
            ask(Reply(200, (), b"{}"), method, message)
        assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_what_is_no_document_is_the_replicas_fault() -> None:
    for body in (b"<html>", b"[]", b'{"name": 3}', b"\xff"):
        with pytest.raises(UpstreamError, match="nonsense"):
            ask(Reply(200, (), body), "ServerMetadata", pb.ServerMetadataRequest())


@pytest.mark.parametrize(
    ("status", "code"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "INTERNAL"), (503, "UNAVAILABLE")]
)
def test_its_errors_are_statuses_in_its_words(status: int, code: str) -> None:
    body = json.dumps({"error": "so it is"}).encode()
    with pytest.raises(RpcRefused, match="so it is") as caught:
        ask(Reply(status, (), body), "ModelConfig", pb.ModelConfigRequest(name="m"))
    assert caught.value.code is grpc.StatusCode[code]


def test_small_and_large_messages_are_said_alike() -> None:
    body, length = b'{"model_name":"m","model_version":"1","outputs":[]}', "51"
    for elements in (1, 200_000):
        message = pb.ModelInferRequest(model_name="m", id="7")
        message.inputs.add(name="x", datatype="INT32", shape=[elements]).contents.int_contents.extend([300] * elements)
        calls, answer = ask(Reply(200, (("Inference-Header-Content-Length", length),), body), "ModelInfer", message)
        assert (answer.model_name, answer.id, calls[0].target) == ("m", "7", "/v2/models/m/infer")
        assert calls[0].body.endswith(b"\x2c\x01\0\0" * elements)


def over_grpc(call: Call, answer) -> tuple[Reply, list[Rpc]]:
    asked: list[Rpc] = []

    async def ask(rpc: Rpc) -> RpcReply:
        asked.append(rpc)
        if isinstance(answer, Exception):
            raise answer
        return RpcReply(answer.SerializeToString())

    return asyncio.run(asked_over_grpc(call, ask)), asked


def test_the_other_way_paths_are_rpcs_and_statuses_errors() -> None:
    reply, asked = over_grpc(Call("GET", "/v2/models/a%20b/versions/1"), pb.ModelMetadataResponse(name="a b"))
    assert json.loads(reply.body)["name"] == "a b"
    assert pb.ModelMetadataRequest.FromString(asked[0].message) == pb.ModelMetadataRequest(name="a b", version="1")
    refused = RpcRefused(grpc.StatusCode.NOT_FOUND, "not here")
    reply, _ = over_grpc(Call("GET", "/v2/models/m/config"), refused)
    assert (reply.status, json.loads(reply.body)) == (404, {"error": "not here"})
    assert over_grpc(Call("GET", "/v2/health/ready"), pb.ServerReadyResponse(ready=False))[0].status == 400


@pytest.mark.parametrize(
    "call",
    [
        Call("POST", "/v2/models/m/generate", (), b"{}"),
        Call("DELETE", "/v2/models/m"),
        Call("POST", "/v2/models/m/config", (), b"{}"),
    ],
)
def test_what_has_no_counterpart_is_rejected_in_words(call: Call) -> None:
    with pytest.raises(Rejected):
        over_grpc(call, pb.ServerLiveResponse())


def test_compressed_bodies_are_inflated_and_sent_on_plain() -> None:
    document = b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]}]}'
    answer = pb.ModelInferResponse(model_name="m", model_version="1")
    answer.outputs.add(name="y", datatype="INT8", shape=[1])
    answer.raw_output_contents.append(b"\x07")
    for coding, packed in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        call = Call("POST", "/v2/models/m/infer", (("Content-Encoding", coding),), packed(document))
        reply, asked = over_grpc(call, answer)
        assert (reply.status, json.loads(reply.body)["outputs"][0]["data"]) == (200, [7])
        assert pb.ModelInferRequest.FromString(asked[0].message).raw_input_contents == [b"\x01\x02"]
    for coding, status in (("gzip", 400), ("br", 415), ("gzip, gzip", 415)):
        reply, asked = over_grpc(Call("POST", "/v2/models/m/infer", (("Content-Encoding", coding),), b"{}"), answer)
        assert (reply.status, asked) == (status, [])


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff"])
def test_a_body_that_is_no_object_is_a_bad_request(body: bytes) -> None:
    reply, asked = over_grpc(Call("POST", "/v2/logging", (), body), pb.LogSettingsResponse())
    assert (reply.status, asked) == (400, [])
