"""One replica over gRPC: what each of its faults means, and how many calls it gets at once."""

import asyncio
import gc
import socket
from time import monotonic

import grpc
import pytest
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends import triton_grpc
from tiers.backends.call import Call
from tiers.backends.over_grpc import Carrier
from tiers.backends.rpc import Rpc, RpcRefused
from tiers.backends.triton_grpc import GrpcOptions, TritonGrpc
from tiers.inference import NOT_ASKED, InferRequest, Rejected, RequestedOutput, Tensor, UpstreamError
from tiers.v2.message import Limits

SECONDS = 10.0
REQUEST = InferRequest("m", (Tensor("x", "FP32", (1,), b"1234"),), id="7")


def answer(model="m", version="1", raw=b"1234", name="y"):
    found = pb.ModelInferResponse(model_name=model, model_version=version)
    found.outputs.add(name=name, datatype="FP32", shape=[1])
    found.raw_output_contents.append(raw)
    return found.SerializeToString()


class Server(grpc.GenericRpcHandler):
    """Answers every unary call with what ``reply`` returns, awaited; a stream's requests come back as they are."""

    def __init__(self, port=0):
        self.asked = []
        self.reply = answer
        self.server = aio.server()
        self.server.add_generic_rpc_handlers((self,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port(f'127.0.0.1:{port}')}"

    def service(self, details):
        if details.method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self.echo)
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, message, context):
        self.asked.append((message, dict(context.invocation_metadata()), context.time_remaining()))
        told = self.reply()
        told = await told if asyncio.iscoroutine(told) else told
        if isinstance(told, tuple):
            await context.abort(*told)
        return told

    async def echo(self, requests, context):
        async for message in requests:
            yield message


@pytest.fixture
async def server():
    found = Server()
    await found.server.start()
    yield found
    await found.server.stop(0)


@pytest.fixture
async def replica(server):
    """``replica(calls_max=1)`` -> a client of the server."""
    made = []

    def make(target=None, **options):
        made.append(TritonGrpc(target or server.target, GrpcOptions(**options)))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def within(seconds=SECONDS):
    now = monotonic()
    return Deadline.after(now, seconds), now


async def failed(replica, request=REQUEST, seconds=SECONDS):
    with pytest.raises((UpstreamError, Rejected)) as caught:
        await replica.infer(request, *within(seconds))
    return caught.value


async def test_a_request_goes_out_with_its_time_and_comes_back(server, replica):
    response = await replica().infer(REQUEST, *within(2.0))
    assert (response.model, response.version, bytes(response.outputs[0].data)) == ("m", "1", b"1234")
    message, _, remaining = server.asked[0]
    request = pb.ModelInferRequest.FromString(message)
    assert (request.id, list(request.raw_input_contents)) == ("7", [b"1234"])
    assert 0 < request.parameters["timeout"].int64_param <= 2_000_000
    assert 0 < remaining <= 2.0 * 1.02  # grpc rounds a time up when it writes it


@pytest.mark.parametrize(
    ("code", "words", "kind", "status"),
    [
        ("INVALID_ARGUMENT", "wrong shape", Rejected, 400),
        ("UNIMPLEMENTED", "not so", Rejected, 501),
        ("NOT_FOUND", "Request for unknown model: 'm' version 9 is not found", Rejected, 404),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", Failure.BROKEN, 404),
        ("UNAVAILABLE", "Request for unknown model: 'm' has no available versions", Failure.BROKEN, 503),
        ("UNAVAILABLE", "Exceeds maximum queue size", Failure.OVERLOADED, 503),
        ("INTERNAL", "division by zero", Failure.RAISED, 500),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", Failure.BROKEN, 500),
        ("UNAUTHENTICATED", "who are you", Failure.RAISED, 401),
        ("RESOURCE_EXHAUSTED", "too many", Failure.OVERLOADED, 429),
    ],
)
async def test_statuses_mean_what_they_mean_over_http(server, replica, code, words, kind, status):
    server.reply = lambda: (grpc.StatusCode[code], words)
    error = await failed(replica())
    assert error.status == status
    assert (type(error) if kind is Rejected else error.failure) is kind
    assert words.partition("'")[0] in str(error)


@pytest.mark.parametrize(
    ("told", "failure"),
    [
        (b"\xff\xff", Failure.BROKEN),
        (answer(raw=b"12"), Failure.BROKEN),
        (answer(model="other"), Failure.BROKEN),
        (answer(name="z"), Failure.RAISED),
        (answer(raw=bytes(100_000)), Failure.OVERSIZED),
    ],
)
async def test_answers_that_are_none(server, replica, told, failure):
    server.reply = lambda: told
    request = InferRequest("m", REQUEST.inputs, (RequestedOutput("y"),))
    error = await failed(replica(message_bytes_max=50_000, limits=Limits()), request)
    assert error.failure is failure


async def test_nobody_there_is_unreachable_and_a_connection_lost_is_dropped(server, replica):
    error = await failed(replica("127.0.0.1:1"))
    assert (error.failure, error.before_answer) == (Failure.UNREACHABLE, True)
    waiting = asyncio.Event()
    server.reply = waiting.wait
    asking = asyncio.create_task(failed(replica()))
    async with asyncio.timeout(SECONDS):
        while not server.asked:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
    await server.server.stop(0)
    assert (await asking).failure in (Failure.DROPPED, Failure.BROKEN)


@pytest.mark.parametrize("probe", [True, False])
async def test_who_is_found_again_is_not_refused_for_a_lanes_last_failure(monkeypatch, probe):
    """Each lane has a connection of its own, which grpc tries again at its own times: what a probe has found is there,
    and a probe's own lane may have been tried a moment before it came."""
    monkeypatch.setattr(triton_grpc, "_PATIENCE_SECONDS", SECONDS)
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind(("127.0.0.1", 0))
        made = Server(port.getsockname()[1])
        replica = TritonGrpc(made.target, GrpcOptions())
        lane = replica._probing if probe else replica._inferring
        with pytest.raises(UpstreamError):
            await lane.unary(Rpc("ModelInfer", b""), SECONDS)
        assert lane.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if probe:
            made.reply = lambda: pb.ServerReadyResponse(ready=True).SerializeToString()
            asked = replica.exchange(Call("GET", "/v2/health/ready", probe=True), *within())
        else:
            replica._found_at = asyncio.get_running_loop().time()
            asked = replica.infer(REQUEST, *within())
        asking = asyncio.create_task(asked)
        await asyncio.sleep(0)
        await made.server.start()
        try:
            await asking
        finally:
            await replica.close()
            await made.server.stop(0)


async def test_a_request_waits_for_no_lane_whose_server_nobody_has_found():
    replica = TritonGrpc("127.0.0.1:1", GrpcOptions())
    assert (await failed(replica)).failure is Failure.UNREACHABLE
    assert (await failed(replica)).failure is Failure.UNREACHABLE
    assert replica._inferring._turning is None
    await replica.close()


async def test_silence_is_a_timeout_and_no_time_asks_nobody(server, replica):
    server.reply = asyncio.Event().wait
    assert (await failed(replica(), seconds=0.1)).failure is Failure.TIMEOUT
    asked = len(server.asked)
    assert (await failed(replica(), seconds=0.0)).failure is Failure.TIMEOUT
    assert len(server.asked) == asked


async def test_further_calls_wait_and_who_leaves_has_not_asked(server, replica):
    going = asyncio.Event()

    async def slowly():
        await going.wait()
        return answer()

    server.reply = slowly
    one = replica(calls_max=1)
    first = asyncio.create_task(one.infer(REQUEST, *within()))
    await asyncio.sleep(0)
    error = await failed(one, seconds=0.05)
    assert (error.failure, error.before_answer) == (Failure.OVERLOADED, True)
    second = asyncio.create_task(one.infer(REQUEST, *within()))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError) as left:
        await second
    assert left.value.__notes__ == [NOT_ASKED]
    third = asyncio.create_task(one.infer(REQUEST, *within()))
    going.set()
    assert (await first).model == (await third).model == "m"
    assert len(server.asked) == 2


async def test_calls_passed_through_come_back_as_they_are(server, replica):
    one = replica()
    reply = await one.unary(Rpc("ServerMetadata", b"", (("x-one", "1"), ("b-bin", b"\x00"))), *within())
    assert (reply.message, server.asked[0][1]["x-one"], server.asked[0][1]["b-bin"]) == (answer(), "1", b"\x00")
    server.reply = lambda: (grpc.StatusCode.ALREADY_EXISTS, "there", (("x-two", "2"),))
    with pytest.raises(RpcRefused) as caught:
        await one.unary(Rpc("ModelInfer"), *within())
    assert (caught.value.code.name, caught.value.details) == ("ALREADY_EXISTS", "there")
    assert ("x-two", "2") in caught.value.trailing


async def test_a_stream_ends_when_both_sides_have_said_all(replica):
    talk = replica().converse(Rpc("ModelStreamInfer"), *within())
    for number in range(3):
        await talk.send(bytes([number]))
    await talk.end()
    assert [message async for message in talk.answers()] == [b"\0", b"\1", b"\2"]
    talk.cancel()


async def test_a_stream_that_was_never_begun_is_over_at_once(replica):
    talk = replica().converse(Rpc("ModelStreamInfer"), *within())
    await talk.end()
    assert [message async for message in talk.answers()] == []
    talk.cancel()


async def test_open_streams_are_bounded(replica):
    one = replica(passthrough_calls_max=1, passthrough_wait=0.05)
    first, second = (one.converse(Rpc("ModelStreamInfer"), *within()) for _ in range(2))
    await first.send(b"1")
    with pytest.raises(UpstreamError) as caught:
        await second.send(b"1")
    assert caught.value.failure is Failure.OVERLOADED
    first.cancel()
    await second.send(b"1")
    second.cancel()


class Listener:
    held = 0

    def __init__(self):
        self.told = []
        self.over = asyncio.Event()

    def begin(self, head, follows):
        self.told.append((head.status, head.length, head.lines))

    def feed(self, piece):
        self.told.append(piece)

    def finish(self):
        self.over.set()

    def answer(self, head, body):
        self.begin(head, follows=True)
        self.feed(body)
        self.finish()

    def fail(self, error):
        self.told.append(error.failure)
        self.over.set()


class Place:
    def __init__(self):
        self.told = []

    def answered(self):
        self.told.append("answered")

    def left(self, error=None):
        self.told.append(None if error is None else error.failure)


async def test_calls_in_https_words_by_callbacks_and_in_pieces(server, replica):
    one = replica()
    server.reply = lambda: pb.ServerMetadataResponse(name="triton").SerializeToString()
    listener, place = Listener(), Place()
    one.relay(Call("GET", "/v2"), b"", listener, place, 1.0)
    await asyncio.wait_for(listener.over.wait(), SECONDS)
    body = b'{"name":"triton","version":"","extensions":[]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    assert listener.told == [(200, len(body), head), body]
    assert place.told == ["answered"]
    async with one.stream(Call("GET", "/v2"), *within()) as streamed:
        assert [piece async for piece in streamed.chunks] == [body]
    await server.server.stop(0)
    gone, place = Listener(), Place()
    one.relay(Call("GET", "/v2"), b"", gone, place, 1.0)
    await asyncio.wait_for(gone.over.wait(), SECONDS)
    assert gone.told in ([Failure.UNREACHABLE], [Failure.DROPPED])
    assert place.told == gone.told


async def test_a_bug_on_the_way_keeps_neither_place_nor_caller_and_is_told():
    async def ask():
        raise ZeroDivisionError("a bug")

    bugs = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context["exception"]))
    listener, place = Listener(), Place()
    carrier = Carrier(ask, listener, place)
    carrier.start()
    await asyncio.wait_for(listener.over.wait(), SECONDS)
    assert (listener.told, place.told) == ([Failure.BROKEN], [None])
    del carrier
    await asyncio.sleep(0)
    gc.collect()
    assert [str(bug) for bug in bugs] == ["a bug"]
