"""The gRPC door before an upstream that records what comes: rules of admission and cache, what goes through, limits."""

import asyncio
import contextlib
import hashlib
import ssl

import grpc
import pytest
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from gateway.app import Gateway
from gateway.doors.rpcs import MESSAGE_BYTES_MAX
from gateway.sources import load

SERVICE = "inference.GRPCInferenceService"
SECONDS = 10.0
LISTENERS = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "GRPC", "ADMIN")}
TIER = 'tiers = [{ backend = "upstream", model = "m" }]'
CACHED = f'{{ {TIER}, cache = {{ ttl = "1h", max_stale = "1h" }} }}'


def infer(model="m", data=b"12345678", **named):
    found = pb.ModelInferRequest(model_name=model, **named)
    found.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    found.raw_input_contents.append(data)
    return found


async def until(true):
    """Let everyone, who all live in this loop, go on until ``true()``."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


class Upstream(grpc.GenericRpcHandler):
    """A server of the models "m" (FP32, echoed), and "d" (decoupled), which keeps what it is asked.

    Probes and questions about models are answered and not kept. ``before`` is awaited before each answer.
    """

    def __init__(self):
        self.asked = []
        self.before = None
        self.cancelled = 0
        self.refuses = None
        self.ready = True
        self.server = aio.server(options=[("grpc.max_receive_message_length", -1)])
        self.server.add_generic_rpc_handlers((self,))
        self.target = ""

    async def start(self):
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self.stream)

        async def answer(message, context):
            return await self.answer(name, message, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    async def answer(self, name, message, context):
        request = getattr(pb, f"{name}Request").FromString(message)
        answer = getattr(pb, f"{name}Response")()
        if name == "ServerReady":
            answer.ready = self.ready
        elif name == "ModelReady":
            answer.ready = True
        elif name == "ModelMetadata":
            if request.version not in ("", "1"):
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
            answer.name = request.name
            answer.versions.append("1")
            answer.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
            answer.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
        elif name == "ModelConfig":
            answer.config.name, answer.config.max_batch_size = request.name, 8
            answer.config.model_transaction_policy.decoupled = request.name == "d"
        elif name != "ModelStatistics":
            self.asked.append((name, request, dict(context.invocation_metadata()), context.time_remaining()))
            if self.before is not None:
                try:
                    await self.before()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            if self.refuses is not None:
                await context.abort(*self.refuses)
            if name == "ModelInfer":
                answer.CopyFrom(self.echoed(request))
        return answer.SerializeToString()

    def echoed(self, request):
        answer = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        answer.outputs.add(name="y", datatype="FP32", shape=[1, 2])
        answer.raw_output_contents.append(request.raw_input_contents[0])
        return answer

    async def stream(self, requests, context):
        async for message in requests:
            request = pb.ModelInferRequest.FromString(message)
            self.asked.append(("ModelStreamInfer", request, dict(context.invocation_metadata()), None))
            if request.id == "end":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            for _ in range(2):
                answer = pb.ModelStreamInferResponse(infer_response=self.echoed(request))
                await context.write(answer.SerializeToString())


class Door:
    def __init__(self, gateway, http):
        self.gateway, self.http = gateway, http
        self.channel = aio.insecure_channel(gateway.doors.grpc_address)

    def call(self, method="ModelInfer", message=None, **named):
        asked = infer() if message is None else message
        data = asked if isinstance(asked, bytes) else asked.SerializeToString()
        return self.channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=named.pop("timeout", SECONDS), **named)

    async def ask(self, method="ModelInfer", message=None, **named):
        """(the answer, trailing metadata)."""
        call = self.call(method, message, **named)
        answer = getattr(pb, f"{method}Response").FromString(await call)
        return answer, dict(await call.trailing_metadata())

    async def refused(self, method="ModelInfer", message=None, **named):
        """(status, details, trailing metadata) of a call that must fail."""
        with pytest.raises(aio.AioRpcError) as caught:
            await self.call(method, message, **named)
        return caught.value.code().name, caught.value.details(), dict(caught.value.trailing_metadata())

    def stream(self, **named):
        return self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(timeout=SECONDS, **named)


@pytest.fixture
async def upstream():
    found = Upstream()
    await found.start()
    yield found
    await found.server.stop(0)


@pytest.fixture
async def open_door(upstream):
    """``await open_door(KEY=value)`` -> a gateway before the upstream; keys are environment overrides."""
    doors = []

    async def start(target=None, **overrides):
        environ = LISTENERS | {"TAILRACE_SERVER__DRAIN": "1s"}
        named = {f"TAILRACE_{key}": value for key, value in overrides.items()}
        gateway = Gateway(load(None, environ | named, [f"grpc://{target or upstream.target}"]))
        http, _ = await gateway.start()
        doors.append(Door(gateway, http))
        return doors[-1]

    yield start
    for door in doors:
        await door.channel.close()
        await door.gateway.stop()


# -- what goes through -------------------------------------------------------------------------------------------


async def test_a_call_goes_out_as_it_came_without_what_was_for_us_alone(upstream, open_door):
    door = await open_door()
    metadata = (("x-one", "1"), ("trace-bin", b"\x00\x01"), ("authorization", "Bearer t"))
    answer, trailing = await door.ask(message=infer(id="7"), metadata=metadata)
    assert (answer.id, answer.raw_output_contents) == ("7", [b"12345678"])
    ((_, request, got, remaining),) = upstream.asked
    assert request == infer(id="7")
    assert {name: got[name] for name, _ in metadata} == dict(metadata)
    assert got["via"] == "2.0 tailrace"
    assert 0 < remaining <= SECONDS * 1.02  # grpc rounds a timeout up to a few digits, at each of the two calls
    assert "passthrough" in trailing["cache-status"]


async def test_a_status_comes_back_as_it_is(upstream, open_door):
    door = await open_door()
    upstream.refuses = (grpc.StatusCode.ALREADY_EXISTS, "there is one", (("x-two", "2"),))
    code, details, trailing = await door.refused()
    assert (code, details, trailing["x-two"]) == ("ALREADY_EXISTS", "there is one", "2")


async def test_who_leaves_cancels_the_work_upstream(upstream, open_door):
    door = await open_door()
    waiting = asyncio.Event()
    upstream.before = waiting.wait
    call = door.call()
    async with asyncio.timeout(SECONDS):
        await until(lambda: upstream.asked)
        call.cancel()
        await until(lambda: upstream.cancelled)


async def test_nobody_there_is_unavailable_and_says_when_to_come_back(open_door):
    door = await open_door("127.0.0.1:1")
    code, details, trailing = await door.refused()
    assert (code, trailing["tailrace-problem"]) == ("UNAVAILABLE", "unavailable")
    assert "replica" in details
    assert int(trailing["retry-after"]) >= 1
    assert not (await door.ask("ServerReady", pb.ServerReadyRequest()))[0].ready
    assert (await door.ask("ServerLive", pb.ServerLiveRequest()))[0].live


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x7fm"])
async def test_what_is_no_message_reaches_nobody(upstream, open_door, message):
    code, _, trailing = await (await open_door()).refused(message=message)
    assert (code, trailing["tailrace-problem"], upstream.asked) == ("INVALID_ARGUMENT", "malformed", [])


async def test_what_triton_does_not_have_is_unimplemented(open_door):
    door = await open_door()
    with pytest.raises(aio.AioRpcError) as caught:
        await door.channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- routes: one pipeline ------------------------------------------------------------------------------------------


ONE_TWO = b"\x00\x00\x80\x3f\x00\x00\x00\x40"


async def test_known_bytes_are_a_hit_whatever_their_id_and_elements_meet_raw_bytes(upstream, open_door):
    door = await open_door(ROUTES__R=CACHED)
    for number, identifier in enumerate(("", "a", "", "b")):
        answer, told = await door.ask(message=infer("r", ONE_TWO, id=identifier))
        assert (answer.id, answer.raw_output_contents) == (identifier, [ONE_TWO])
        assert door.gateway.routes["r"].cache.wires == min(number, 1), "known by its bytes from the first repeat on"
    assert told["age"] == "0"
    explicit = infer("r")
    del explicit.raw_input_contents[:]
    explicit.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    assert "; hit;" in (await door.ask(message=explicit))[1]["cache-status"]
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (lambda m: m.raw_input_contents.append(b""), "INVALID_ARGUMENT", "left over"),
        (lambda m: m.inputs[0].shape.append(3), "INVALID_ARGUMENT", "input 'x'"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_in_words_and_reaches_no_model(upstream, open_door, spoil, status, words):
    door = await open_door(ROUTES__R=CACHED)
    message = infer("r")
    spoil(message)
    code, details, told = await door.refused(message=message)
    assert (code, upstream.asked) == (status, [])
    assert words in details
    assert told["cache-status"]


async def test_keys_are_asked_for_and_stay_here(upstream, open_door):
    digest = hashlib.sha256(b"secret").hexdigest()
    caller = f'{{ key_sha256 = "{digest}", quota = {{ rate = 2, per = "1h" }} }}'
    door = await open_door(CALLERS__A=caller, SERVER__ANONYMOUS="false")
    assert (await door.refused())[0] == "UNAUTHENTICATED"
    assert (await door.refused(metadata=(("x-api-key", "other"),)))[0] == "UNAUTHENTICATED"
    twice = (("x-api-key", "secret"), ("x-api-key", "secret"))
    assert (await door.refused(metadata=twice))[0] == "INVALID_ARGUMENT"
    for metadata in ((("x-api-key", "secret"),), (("authorization", "Bearer secret"),)):
        _, told = await door.ask(metadata=metadata)
        assert "ratelimit" in told
    assert all(not {"x-api-key", "authorization"} & set(got) for _, _, got, _ in upstream.asked)
    assert (await door.refused(metadata=(("x-api-key", "secret"),)))[0] == "RESOURCE_EXHAUSTED"
    assert (await door.ask("ServerReady", pb.ServerReadyRequest()))[0].ready


async def test_the_callers_deadline_holds_and_reaches_the_model(upstream, open_door):
    door = await open_door(ROUTES__R=f"{{ {TIER} }}")
    upstream.before = asyncio.Event().wait
    began = asyncio.get_running_loop().time()
    assert (await door.refused(message=infer("r"), timeout=0.3))[0] == "DEADLINE_EXCEEDED"
    assert asyncio.get_running_loop().time() - began < 5
    _, request, _, remaining = upstream.asked[0]
    assert 0 < remaining <= 0.3
    assert 0 < request.parameters["timeout"].int64_param <= 300_000
    limited = infer("r")
    limited.parameters["timeout"].int64_param = 200_000
    code, _, told = await door.refused(message=limited)
    assert (code, told["tailrace-problem"]) == ("DEADLINE_EXCEEDED", "deadline")


async def test_a_models_own_error_is_internal_and_a_route_says_of_itself(upstream, open_door):
    door = await open_door(ROUTES__R=f"{{ {TIER} }}")
    upstream.refuses = (grpc.StatusCode.INTERNAL, "no such number")
    code, details, told = await door.refused(message=infer("r"))
    assert (code, told["tailrace-problem"]) == ("INTERNAL", "model-failed")
    assert "no such number" in details
    metadata, _ = await door.ask("ModelMetadata", pb.ModelMetadataRequest(name="r"))
    assert (metadata.name, metadata.platform, list(metadata.versions)) == ("r", "tailrace", ["1"])
    assert list(metadata.inputs[0].shape) == [-1, 2]
    config, _ = await door.ask("ModelConfig", pb.ModelConfigRequest(name="r"))
    assert config.config.name == "m"
    assert (await door.ask("ModelReady", pb.ModelReadyRequest(name="r")))[0].ready
    assert (await door.refused("ModelMetadata", pb.ModelMetadataRequest(name="r", version="9")))[0] == "NOT_FOUND"


# -- changes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message", "switch"),
    [
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"), "repository"),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"), "repository"),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="m"), "shared_memory"),
        ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(name="m"), "shared_memory"),
        (
            "TraceSetting",
            pb.TraceSettingRequest(settings={"trace_rate": pb.TraceSettingRequest.SettingValue(value=["1"])}),
            "trace",
        ),
        (
            "LogSettings",
            pb.LogSettingsRequest(settings={"log_info": pb.LogSettingsRequest.SettingValue(bool_param=True)}),
            "logging",
        ),
    ],
)
async def test_changes_need_permission_and_reading_none(upstream, open_door, method, message, switch):
    door = await open_door(SERVER__ALLOW="[]")
    code, details, _ = await door.refused(method, message)
    assert (code, upstream.asked) == ("PERMISSION_DENIED", [])
    assert f'"{switch}" in server.allow' in details
    if switch in ("trace", "logging"):
        await door.ask(method, type(message)())
        assert len(upstream.asked) == 1
    allowed = await open_door(SERVER__ALLOW=f'["{switch}"]')
    await allowed.ask(method, message)


async def test_loading_turns_the_epoch_of_routes(open_door):
    door = await open_door(ROUTES__R=CACHED)
    await door.ask(message=infer("r"))
    await door.ask("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
    _, told = await door.ask(message=infer("r"))
    assert "fwd=" in told["cache-status"]
    assert door.gateway.routes["r"].epoch == 1


# -- streams -----------------------------------------------------------------------------------------------------


async def answers_of(call, number):
    found = []
    async with asyncio.timeout(SECONDS):
        for _ in range(number):
            found.append(pb.ModelStreamInferResponse.FromString(await call.read()))
    return found


async def test_each_request_of_a_stream_goes_its_own_way(upstream, open_door):
    decoupled = '{ tiers = [{ backend = "upstream", model = "d" }], cache = { ttl = "1h" } }'
    door = await open_door(ROUTES__R=CACHED, ROUTES__S=decoupled)
    call = door.stream()
    for request in (infer("r", id="1"), infer("r", id="2"), infer("r", b"short", id="3")):
        await call.write(request.SerializeToString())
    first, second, third = await answers_of(call, 3)
    for answer, identifier in ((first, "1"), (second, "2")):
        assert (answer.infer_response.id, answer.infer_response.model_name) == (identifier, "r")
        assert answer.infer_response.parameters["triton_final_response"].bool_param
    assert (third.infer_response.id, "needs 8 bytes" in third.error_message) == ("3", True)
    assert len(upstream.asked) == 1  # they were equal
    await call.write(infer("s", id="4").SerializeToString())
    names = [(each.infer_response.model_name, each.infer_response.id) for each in await answers_of(call, 2)]
    assert names == [("s", "4")] * 2
    await call.write(infer("elsewhere", id="5").SerializeToString())
    names = [(each.infer_response.model_name, each.infer_response.id) for each in await answers_of(call, 2)]
    assert names == [("elsewhere", "5")] * 2
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert [request.model_name for _, request, _, _ in upstream.asked] == ["m", "d", "elsewhere"]


async def test_a_replica_that_ends_a_stream_ends_it_for_the_caller(open_door):
    door = await open_door()
    call = door.stream()
    await call.write(infer(id="end").SerializeToString())
    async with asyncio.timeout(SECONDS):
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == "gone"


async def test_a_stream_without_requests_ends_well_and_leaves_nothing(open_door):
    door = await open_door()
    call = door.stream()
    await call.done_writing()
    async with asyncio.timeout(SECONDS):
        assert await call.code() is grpc.StatusCode.OK
    gone = door.stream()
    await gone.write(infer().SerializeToString())
    await answers_of(gone, 2)
    gone.cancel()
    pool = door.gateway.homes["upstream"].pool
    await until(lambda: not any(state.in_flight for state in pool.states()))


async def test_a_stream_reads_no_more_than_it_may_have_in_work(upstream, open_door):
    door = await open_door(ROUTES__R=f"{{ {TIER} }}", SERVER__GRPC_STREAM_PENDING_MAX="2")
    going = asyncio.Event()
    upstream.before = going.wait
    call = door.stream()
    for number in range(6):
        await call.write(infer("r", id=str(number)).SerializeToString())
    await until(lambda: len(upstream.asked) == 2)
    await asyncio.sleep(0.05)
    assert len(upstream.asked) == 2
    going.set()
    assert [each.infer_response.id for each in await answers_of(call, 6)] == list("012345")
    call.cancel()


async def test_what_goes_on_from_a_route_is_held_to_all_that_is_answered_here(upstream, open_door):
    tier = 'tiers = [{ backend = "upstream", model = "d" }]'
    limits = 'limits = { batch_max = 1, body_bytes_max = "1KiB" }, inputs = { x = { max = 4.0 } }'
    door = await open_door(ROUTES__S=f'{{ {tier}, {limits}, quota = {{ rate = 7, per = "1h" }} }}')
    two_rows = infer("s", 2 * ONE_TWO, id="rows")
    two_rows.inputs[0].shape[:] = [2, 2]
    another, short = infer("s", ONE_TWO, id="name"), infer("s", ONE_TWO[:4], id="short")
    another.inputs[0].name = "z"
    large, beyond = infer("s", bytes(2000), id="large"), infer("s", b"\x00\x00\xc0\x40" * 2, id="beyond")
    call = door.stream()
    for request in (two_rows, another, short, large, beyond):
        await call.write(request.SerializeToString())
    told = {each.infer_response.id: each.error_message for each in await answers_of(call, 5)}
    words = {
        "rows": "batch", "name": "unexpected input 'z'", "short": "needs 8 bytes",
        "large": "routes.s.limits.body_bytes_max", "beyond": "at most 4",
    }  # fmt: skip
    assert {name: word in told[name] for name, word in words.items()} == dict.fromkeys(words, True), told
    assert upstream.asked == []
    for _ in range(2):
        await call.write(infer("s", ONE_TWO, id="well").SerializeToString())
        assert {(each.infer_response.id, each.error_message) for each in await answers_of(call, 2)} == {("well", "")}
    await call.write(infer("s", ONE_TWO, id="spent").SerializeToString())
    (spent,) = await answers_of(call, 1)
    assert (spent.infer_response.id, "route:s" in spent.error_message) == ("spent", True)
    call.cancel()


async def test_a_silent_stream_is_ended_and_one_that_speaks_is_not(open_door):
    door = await open_door(SERVER__GRPC_STREAM_IDLE_TIMEOUT="1500ms")  # long for a machine that does much else, too
    talking, silent = door.stream(), door.stream()
    await silent.write(infer().SerializeToString())
    await answers_of(silent, 2)
    async with asyncio.timeout(SECONDS):
        while not silent.done():
            await talking.write(infer().SerializeToString())
            await answers_of(talking, 2)
        assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "server.grpc_stream_idle_timeout" in await silent.details()
    await talking.done_writing()
    assert await talking.code() is grpc.StatusCode.OK
    pool = door.gateway.homes["upstream"].pool
    await until(lambda: not any(state.in_flight for state in pool.states()))


async def test_one_address_does_not_hold_all_streams(open_door):
    door = await open_door(SERVER__GRPC_OPEN_STREAMS_PER_ADDRESS_MAX="2")
    held = [door.stream(), door.stream()]
    for each in held:
        await each.write(infer().SerializeToString())
        await answers_of(each, 2)
    third = door.stream()
    async with asyncio.timeout(SECONDS):
        assert await third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "server.grpc_open_streams_per_address_max" in await third.details()
    await door.ask()  # calls have places of their own
    held[0].cancel()
    await until(lambda: door.gateway.doors.grpc.service.streams.calls == 1)
    fourth = door.stream()
    await fourth.write(infer().SerializeToString())
    await answers_of(fourth, 2)
    text = door.gateway.telemetry.exposition().decode()
    assert "tailrace_grpc_calls 2.0" in text
    assert "tailrace_grpc_streams 2.0" in text
    assert "tailrace_grpc_calls_accepted_total 4.0" in text
    assert 'tailrace_grpc_calls_refused_total{reason="streams"} 1.0' in text


# -- limits and the end --------------------------------------------------------------------------------------------


async def test_messages_are_bounded_also_inflated_ones(upstream, open_door):
    door = await open_door(SERVER__GRPC_MESSAGE_BYTES_MAX="64KiB", ROUTES__R=f"{{ {TIER}, limits = {LIMITS} }}")
    assert (await door.refused(message=infer(data=bytes(100_000))))[0] == "RESOURCE_EXHAUSTED"
    packed = {"compression": grpc.Compression.Gzip}
    assert (await door.refused(message=infer(data=bytes(10_000_000)), **packed))[0] == "RESOURCE_EXHAUSTED"
    code, details, _ = await door.refused(message=infer("r", bytes(2000)))
    assert (code, "routes.r.limits.body_bytes_max" in details) == ("RESOURCE_EXHAUSTED", True)
    assert upstream.asked == []


LIMITS = '{ body_bytes_max = "1KiB" }'


@pytest.mark.parametrize("name", ["LogSettings", "TraceSetting", "ModelMetadata", "RepositoryIndex"])
async def test_what_asks_or_sets_is_bounded_before_it_is_read(upstream, open_door, name):
    """A map of a million settings would take seconds to read, in which nobody else is answered."""
    door = await open_door(SERVER__ALLOW="[]")
    large = b"\x0a\x00" * (MESSAGE_BYTES_MAX // 2 + 1)
    assert (await door.refused(name, large))[0] == "RESOURCE_EXHAUSTED"
    assert (await door.refused("RepositoryModelLoad", b"no message"))[0] == "PERMISSION_DENIED"  # before it is read
    with pytest.raises(aio.AioRpcError) as caught:
        await door.channel.unary_unary("/grpc.health.v1.Health/Check")(large, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert upstream.asked == []


async def test_who_sends_no_message_or_takes_no_answer_is_cut(open_door):
    door = await open_door(SERVER__BODY_TIMEOUT="50ms")
    call = door.channel.stream_stream(f"/{SERVICE}/ModelInfer")(timeout=SECONDS)
    async with asyncio.timeout(SECONDS):
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not arrive within 0.05 s" in await call.details()
    for method in (f"{SERVICE}/ModelStreamInfer", "grpc.health.v1.Health/Check"):
        call = door.channel.stream_stream(f"/{method}")(timeout=SECONDS)
        async with asyncio.timeout(SECONDS):
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive within 0.05 s" in await call.details()
    empty = door.channel.stream_stream(f"/{SERVICE}/ModelInfer")(timeout=SECONDS)
    await empty.done_writing()
    assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_calls_at_once_are_bounded(upstream, open_door):
    door = await open_door(SERVER__GRPC_CALLS_MAX="2")
    going = asyncio.Event()
    upstream.before = going.wait
    calls = [door.call() for _ in range(2)]
    await until(lambda: len(upstream.asked) == 2)
    assert (await door.refused())[0] == "RESOURCE_EXHAUSTED"
    going.set()
    await asyncio.gather(*calls)


async def test_one_address_does_not_get_all_places(upstream, open_door):
    door = await open_door(SERVER__GRPC_CALLS_PER_ADDRESS_MAX="3")
    guests = door.gateway.doors.grpc.service.guests
    watch = door.channel.unary_stream("/grpc.health.v1.Health/Watch")
    reflect = door.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    held = [watch(b"", timeout=SECONDS), watch(b"", timeout=SECONDS), reflect(timeout=SECONDS)]
    await until(lambda: guests.calls == 3)
    code, details, _ = await door.refused("ServerLive", pb.ServerLiveRequest())
    assert (code, "server.grpc_calls_per_address_max" in details) == ("RESOURCE_EXHAUSTED", True)
    for each in held:
        each.cancel()
    await until(lambda: not len(guests))
    await door.ask("ServerLive", pb.ServerLiveRequest())


async def test_connections_and_metadata_are_bounded(upstream, open_door):
    door = await open_door(SERVER__CONNECTIONS_MAX="2", SERVER__HEADER_BYTES_MAX="4KiB")
    await door.ask()
    assert (await door.refused(metadata=(("x-large", "x" * 6000),)))[0] in ("RESOURCE_EXHAUSTED", "INTERNAL")
    assert len(upstream.asked) == 1
    options = [("grpc.use_local_subchannel_pool", 1)]
    answered = 0
    async with contextlib.AsyncExitStack() as opened:
        for _ in range(4):
            other = Door.__new__(Door)
            other.channel = aio.insecure_channel(door.gateway.doors.grpc_address, options=options)
            await opened.enter_async_context(other.channel)
            with contextlib.suppress(aio.AioRpcError):
                await other.ask(timeout=SECONDS)
                answered += 1
    assert answered == 1


async def test_what_is_in_work_is_finished_and_health_turns_first(upstream, open_door):
    door = await open_door(SERVER__DRAIN="5s", SERVER__DRAIN_NOTICE="300ms")
    noticed = asyncio.Event()
    door.gateway._sleep = lambda _: noticed.wait()  # the notice lasts until all have been asked
    check = door.channel.unary_unary("/grpc.health.v1.Health/Check")
    watch = door.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=SECONDS)
    assert await check(b"") == await watch.read() == b"\x08\x01"
    going = asyncio.Event()
    upstream.before = going.wait
    call = door.call()
    async with asyncio.timeout(SECONDS):
        await until(lambda: upstream.asked)
        stopping = asyncio.create_task(door.gateway.stop())
        assert await watch.read() == b"\x08\x02"
        assert await check(b"", timeout=SECONDS) == b"\x08\x02"
        assert not (await door.ask("ServerReady", pb.ServerReadyRequest()))[0].ready
        noticed.set()
        await until(lambda: door.gateway.doors.grpc.service.connections.closing)
        late = aio.insecure_channel(door.gateway.doors.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)])
        with pytest.raises(aio.AioRpcError) as caught:
            await late.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=1.0)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        await late.close()
        going.set()
        assert pb.ModelInferResponse.FromString(await call).model_name == "m"
        await stopping


@pytest.mark.parametrize("address", ["unix", "[::1]:0"])
async def test_other_kinds_of_addresses(upstream, open_door, tmp_path, address):
    written = f"unix:{tmp_path}/g.sock" if address == "unix" else address
    door = await open_door(SERVER__GRPC=f'"{written}"', CALLERS__A=f'{{ key_sha256 = "{"0" * 64}" }}')
    assert door.gateway.doors.grpc_address.startswith("unix:" if address == "unix" else "[::1]:")
    assert (await door.ask(message=infer()))[0].model_name == "m"


async def test_proxies_are_believed_and_replicas_told(upstream, open_door):
    quota = f'{{ {TIER}, caller_quota = {{ rate = 1, per = "1h" }} }}'
    door = await open_door(ROUTES__R=quota, SERVER__TRUSTED_PROXIES='["127.0.0.1"]')

    def behind(client):
        return {"metadata": (("x-forwarded-for", client),)}

    await door.ask(message=infer("r"), **behind("192.0.2.1"))
    await door.ask(message=infer("r"), **behind("192.0.2.2"))
    assert (await door.refused(message=infer("r"), **behind("192.0.2.1")))[0] == "RESOURCE_EXHAUSTED"
    await door.ask(**behind("192.0.2.7"))
    _, _, got, _ = upstream.asked[-1]
    assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("192.0.2.7, 127.0.0.1", "http")


@pytest.mark.parametrize("mutual", [False, True], ids=["server", "mutual"])
async def test_tls_holds_on_this_door_too_and_new_files_are_taken_up(upstream, open_door, own_pem, mutual):
    files = f'certificate = "{own_pem.certificate}", key = "{own_pem.key}"'
    callers = f', client_ca = "{own_pem.ca}"' if mutual else ""
    client = [path.read_bytes() for path in own_pem.issue("client")]
    door = await open_door(SERVER__TLS=f"{{ {files}{callers} }}")
    assert (await door.refused())[0] == "UNAVAILABLE"  # plainly

    def channel(shown):
        chain, key = client if shown else (None, None)
        credentials = grpc.ssl_channel_credentials(own_pem.ca.read_bytes(), key, chain)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return aio.secure_channel(door.gateway.doors.grpc_address, credentials, options=options)

    for _ in range(2):
        async with channel(shown=True) as known:
            found = Door.__new__(Door)
            found.channel = known
            assert (await found.ask(message=infer()))[0].model_name == "m"
        own_pem.issue("server")
        door.gateway.doors.certificates.renew()
    assert door.gateway.doors.certificates.renewals == 2
    if not mutual:
        address = ("127.0.0.1", int(door.gateway.doors.grpc_address.rpartition(":")[2]))
        shown = await asyncio.to_thread(ssl.get_server_certificate, address)
        assert own_pem.certificate.read_text().replace("\n", "").startswith(shown.replace("\n", ""))
    if mutual:
        async with channel(shown=False) as unknown:
            found.channel = unknown
            assert (await found.refused())[0] == "UNAVAILABLE"
    assert upstream.asked[0][2]["x-forwarded-proto"] == "https"


async def test_who_does_not_take_a_large_answer_is_cut(upstream, open_door):
    door = await open_door(SERVER__WRITE_TIMEOUT="200ms")
    large = infer(data=bytes(48 * 2**20))
    call = door.channel.stream_stream(f"/{SERVICE}/ModelInfer")(timeout=SECONDS)
    await call.write(large.SerializeToString())
    await until(lambda: upstream.asked)
    text = door.gateway.telemetry
    await until(lambda: b'problem="request-timeout",route="(passthrough)"} 1.0' in text.exposition())
    call.cancel()


async def test_refusals_and_answers_are_counted(open_door):
    door = await open_door(ROUTES__R=CACHED)
    await door.ask(message=infer("r"))
    await door.ask(message=infer("r"))
    await door.refused(message=infer("r", b"1"))
    text = door.gateway.telemetry.exposition().decode()
    assert 'tailrace_answers_total{cache="hit",reason="fresh",route="r"} 1.0' in text
    assert 'tailrace_refusals_total{problem="malformed",route="r"} 1.0' in text
    assert 'tailrace_responses_total{route="r",status="200"} 2.0' in text
    assert 'tailrace_responses_total{route="r",status="400"} 1.0' in text


async def test_an_open_stream_goes_on_to_the_backend_of_now(upstream, open_door):
    other = Upstream()
    await other.start()
    door = await open_door()
    call = door.stream()
    for asked, number in ((upstream, 1), (other, 2)):
        await call.write(infer("d", id=str(number)).SerializeToString())
        for _ in range(2):
            async with asyncio.timeout(SECONDS):
                answer = pb.ModelStreamInferResponse.FromString(await call.read())
            assert answer.infer_response.id == str(number)
        assert [request.id for _, request, *_ in asked.asked] == [str(number)]
        await door.gateway.take(load(None, LISTENERS | {"TAILRACE_SERVER__DRAIN": "1s"}, [f"grpc://{other.target}"]))
    call.cancel()
    await other.server.stop(0)
