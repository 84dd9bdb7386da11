"""Drop-in over gRPC: whatever tritonclient.grpc asks, the gateway answers with the message that Triton itself would
give, before a backend that is configured with both protocols, and with either alone."""

import asyncio
import queue
import threading
import time
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from examples.gatewayprocess import GatewayProcess
from tests.cases.dropin import CHANGES, RANDOM, Library, texts
from tests.conftest import settled

MODELS = Path(__file__).parents[1] / "models"
SERVICE = "/inference.GRPCInferenceService/"
UNREGISTER_TRIES = 100
LIBRARY = Library(triton_grpc)
REQUESTS, tensor, outcome = LIBRARY.requests(), LIBRARY.tensor, LIBRARY.outcome
ROUTES = ("echo_all", "echo_bytes", "echo_fp32", "two_outputs", "decoupled", "accumulating")


def start(triton, upstreams):
    arguments = []
    for scheme, address in (("http", triton.http_address), ("grpc", triton.grpc_address)):
        if scheme in upstreams:
            arguments += ["--upstream", f"{scheme}://{address}"]
    return GatewayProcess(None, arguments)


def start_routed(triton, upstreams):
    known = {"http": [triton.http_url], "grpc": [triton.grpc_address]}
    routes = {name: {"tiers": [{"backend": "gpu", "model": name}], "cache": {"ttl": "1h"}} for name in ROUTES}
    routes["mine"] = {"tiers": [{"backend": "gpu", "model": "echo_fp32"}]}
    routes["streaming"] = {"tiers": [{"backend": "gpu", "model": "decoupled"}]}
    backends = {"gpu": {name: known[name] for name in upstreams}}
    return GatewayProcess({"backends": backends, "routes": routes})


MADE = {
    "bare": partial(start, upstreams=("http", "grpc")),
    "HTTP only": partial(start, upstreams=("http",)),
    "gRPC only": partial(start, upstreams=("grpc",)),
    "routed": partial(start_routed, upstreams=("http", "grpc")),
    "routed, gRPC only": partial(start_routed, upstreams=("grpc",)),
}
BARE = ("bare", "HTTP only", "gRPC only")
STREAMING = ("bare", "gRPC only", "routed", "routed, gRPC only")


@pytest.fixture(scope="module")
def made(triton):
    """The gateways, each started when it is first asked for."""
    running = {}

    def find(name):
        if name not in running:
            running[name] = MADE[name](triton)
            running[name].start()
        return running[name]

    yield find
    for process in running.values():
        process.stop()


@pytest.fixture(params=MADE)
def gateway(request, made):
    return made(request.param)


@pytest.fixture(params=BARE)
def transparent(request, made):
    return made(request.param)


@pytest.fixture(params=STREAMING)
def streaming(request, made):
    return made(request.param)


def both(gateway, triton, call):
    """What a call gives through the gateway, and what directly."""
    return outcome(gateway.grpc_address, call), outcome(triton.grpc_address, call)


CALLS = {
    **LIBRARY.calls(),
    "metadata as JSON": lambda client: client.get_model_metadata("echo_all", as_json=True),
    "infer of a decoupled model": lambda client: client.infer("decoupled", [count(1)]).get_response(),
}
WRONG = LIBRARY.wrong()


def count(number):
    return tensor("count", "INT32", np.array([number], np.int32))


@pytest.mark.parametrize("name", CALLS)
def test_what_tritonclient_asks_beside_inference(transparent, triton, name):
    given, direct = both(transparent, triton, CALLS[name])
    assert given == direct


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_errors_have_tritons_status_and_without_a_route_its_words(gateway, made, triton, call):
    given, direct = both(gateway, triton, call)
    assert direct[0] == "error"
    if gateway in [made(name) for name in BARE]:
        assert given == direct
    else:  # in the gateway's words: it never reached Triton
        assert given[:2] == direct[:2]


@pytest.mark.parametrize("name", REQUESTS)
def test_inference_is_equal_message_by_message(gateway, triton, name):
    model, inputs, output = REQUESTS[name]

    def call(client):
        wanted = [triton_grpc.InferRequestedOutput(output)]
        return [client.infer(model, inputs, outputs=wanted, request_id=f"r-{again}").get_response() for again in "123"]

    given, direct = both(gateway, triton, call)
    assert given == direct
    assert [answer.id for answer in given] == ["r-1", "r-2", "r-3"]


def raw(address, method, message, **named):
    """(answer's bytes, initial and trailing metadata) of one RPC, or the error."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer, call = channel.unary_unary(SERVICE + method).with_call(message, timeout=30, **named)
        except grpc.RpcError as error:
            return error.code(), error.details(), dict(error.trailing_metadata() or ())
        return answer, dict(call.initial_metadata()), dict(call.trailing_metadata())


EXPLICIT = {
    "BOOL": ("bool_contents", [True, False]),
    **{f"INT{bits}": ("int_contents", [0, 1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1]) for bits in (8, 16, 32)},
    "INT64": ("int64_contents", [0, -(2**63), 2**63 - 1]),
    **{f"UINT{bits}": ("uint_contents", [0, 1, 2**bits - 1]) for bits in (8, 16, 32)},
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.1, -0.0]),
    "FP64": ("fp64_contents", [0.1, 1e300]),
    "BYTES": ("bytes_contents", [b"", b"\x00\xff", b"text"]),
}


@pytest.mark.parametrize("datatype", EXPLICIT)
def test_explicit_contents(gateway, triton, datatype):
    member, values = EXPLICIT[datatype]
    message = pb.ModelInferRequest(model_name="echo_all")
    entry = message.inputs.add(name=f"{datatype.lower()}_in", datatype=datatype, shape=[len(values)])
    getattr(entry.contents, member).extend(values)
    message.outputs.add(name=f"{datatype.lower()}_out")
    given, direct = [
        pb.ModelInferResponse.FromString(raw(address, "ModelInfer", message.SerializeToString())[0])
        for address in (gateway.grpc_address, triton.grpc_address)
    ]
    assert given == direct
    if datatype == "BYTES":
        packed = serialize_byte_tensor(texts(values)).item()
        assert given.raw_output_contents[0] == packed


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_compression(gateway, triton, coding):
    def call(client):
        answer = client.infer("echo_fp32", REQUESTS["batch"][1], compression_algorithm=coding)
        return answer.get_response()

    given, direct = both(gateway, triton, call)
    assert given == direct


def test_classification(gateway, triton):
    def call(client):
        wanted = [triton_grpc.InferRequestedOutput("y", class_count=2)]
        return client.infer("echo_fp32", REQUESTS["batch"][1], outputs=wanted).get_response()

    given, direct = both(gateway, triton, call)
    assert given == direct


def test_callbacks_of_the_sync_client(gateway, triton):
    def call(client):
        answers = queue.Queue()
        for name, (model, inputs, _) in REQUESTS.items():
            client.async_infer(model, inputs, lambda result, error: answers.put((result, error)), request_id=name)
        found = {}
        for _ in REQUESTS:
            result, error = answers.get(timeout=30)
            assert error is None
            found[result.get_response().id] = result.get_response()
        return found

    given, direct = both(gateway, triton, call)
    assert given == direct


async def aio_outcome(address, call):
    async with triton_aio.InferenceServerClient(address) as client:
        try:
            return await call(client)
        except InferenceServerException as error:
            return "error", error.status(), error.message()


@pytest.mark.parametrize("name", CALLS)
async def test_what_the_asyncio_client_asks_beside_inference(transparent, triton, name):
    class Awaiting:
        """The asyncio client's answers have no ``get_response`` before they are awaited."""

        def __init__(self, client):
            self._client = client

        def __getattr__(self, method):
            return getattr(self._client, method)

    async def call(client):
        if name.startswith("infer"):
            model, inputs = ("nobody", REQUESTS["batch"][1]) if "unknown" in name else ("decoupled", [count(1)])
            return (await client.infer(model, inputs)).get_response()
        return await CALLS[name](Awaiting(client))

    given, direct = [await aio_outcome(each.grpc_address, call) for each in (transparent, triton)]
    assert given == direct


async def test_the_asyncio_client_infers(gateway, triton):
    async def call(client):
        answers = await asyncio.gather(*(client.infer(model, inputs) for model, inputs, _ in REQUESTS.values()))
        return [answer.get_response() for answer in answers]

    given, direct = [await aio_outcome(each.grpc_address, call) for each in (gateway, triton)]
    assert given == direct


@pytest.mark.parametrize("options", ["keepalive", "channel"])
def test_channels_with_options_of_their_own(gateway, triton, options):
    named = {
        "keepalive": {"keepalive_options": triton_grpc.KeepAliveOptions(10_000, 5_000, True, 0)},
        "channel": {"channel_args": [("grpc.max_receive_message_length", 2**20), ("grpc.lb_policy_name", "pick_first"),
                                     ("grpc.primary_user_agent", "mine")]},
    }[options]  # fmt: skip
    answers = []
    for server in (gateway, triton):
        with triton_grpc.InferenceServerClient(server.grpc_address, **named) as client:
            answers.append(client.infer("echo_fp32", REQUESTS["batch"][1]).get_response())
    assert answers[0] == answers[1]


def test_a_clients_time_limit(gateway, triton):
    x = tensor("x", "FP32", np.zeros((1, 1), np.float32))

    def call(client):
        return client.infer("slow", [x], client_timeout=0.05, parameters={"sleep_ms": 400})

    given, direct = both(gateway, triton, call)
    assert given == direct == ("error", "StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded")


# -- streams ---------------------------------------------------------------------------------------------------


def streamed(client, asked, timeout=None):
    """The answers of one stream, and its error if there was one, after so many of them."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=timeout)
    expected = 0
    for number, named in asked:
        client.async_stream_infer(**named)
        expected += number
    found = []
    for _ in range(expected):
        result, error = answers.get(timeout=30)
        found.append(str(error) if error is not None else result.get_response())
        if error is not None and error.status() is not None:
            break
    client.stop_stream()
    return found


def place(answer):
    """Where an answer belongs: of two requests at once the answers come mixed."""
    last = answer.parameters["triton_final_response"].bool_param
    return answer.id, last, b"".join(answer.raw_output_contents)


def test_a_decoupled_model_answers_as_often_as_it_likes(streaming, triton):
    def call(client):
        named = {"model_name": "decoupled", "inputs": [count(3)], "request_id": "d"}
        last = {**named, "inputs": [count(2)], "enable_empty_final_response": True, "request_id": "e"}
        answers = streamed(client, [(3, named), (3, last)])
        return sorted(answers, key=place)

    given, direct = both(streaming, triton, call)
    assert given == direct
    assert len(given) == 6


def test_a_decoupled_model_behind_a_route_of_another_name(made, triton):
    def call(client, name):
        return streamed(client, [(2, {"model_name": name, "inputs": [count(2)]})])

    for name in ("routed", "routed, gRPC only"):
        given = outcome(made(name).grpc_address, partial(call, name="streaming"))
        direct = outcome(triton.grpc_address, partial(call, name="decoupled"))
        for answer in direct:
            answer.model_name = "streaming"
        assert given == direct


def test_plain_models_and_errors_on_a_stream(gateway, triton):
    def call(client):
        named = {"model_name": "echo_fp32", "inputs": REQUESTS["batch"][1]}
        asked = [(1, {**named, "request_id": f"{number}"}) for number in range(3)]
        asked.insert(1, (1, {**named, "model_version": "9"}))
        return streamed(client, asked)

    given, direct = both(gateway, triton, call)
    assert [answer for answer in given if not isinstance(answer, str)] == [
        answer for answer in direct if not isinstance(answer, str)
    ]
    assert sum(isinstance(answer, str) for answer in given) == 1


def test_http_alone_has_no_stream_of_several_answers(made):
    def call(client):
        return streamed(client, [(1, {"model_name": "decoupled", "inputs": [count(3)]})])

    (said,) = outcome(made("HTTP only").grpc_address, call)
    assert "UNIMPLEMENTED" in said
    assert "backends.NAME.grpc" in said


def steps(sequence, values):
    """The requests of one sequence."""
    for index, value in enumerate(values):
        yield {
            "model_name": "accumulating",
            "inputs": [tensor("x", "INT32", np.array([[value]], np.int32))],
            "sequence_id": sequence,
            "sequence_start": index == 0,
            "sequence_end": index == len(values) - 1,
            "request_id": str(sequence),
        }


SEQUENCES = [11, 12, "a sequence"]


@pytest.mark.parametrize("way", ["unary", "stream"])
def test_sequences_by_single_calls_and_on_one_stream(gateway, triton, way):
    # Batched together with others of their like: three callers at once.
    def call(client):
        rounds = zip(*(steps(sequence, [5, 7, 9]) for sequence in SEQUENCES), strict=True)
        mixed = [each for one in rounds for each in one]
        if way == "stream":
            answers = streamed(client, [(1, each) for each in mixed])
        else:
            answers = [client.infer(**each).get_response() for each in mixed]
        sums = {}
        for answer in answers:
            sums.setdefault(answer.id, []).append(int.from_bytes(answer.raw_output_contents[0], "little"))
        return sums

    given, direct = both(gateway, triton, call)
    assert given == direct == {str(sequence): [5, 12, 21] for sequence in SEQUENCES}


def test_sequences_are_batched_with_each_other(gateway):
    together = []

    def one(sequence):
        with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
            for each in steps(sequence, [1] * 8):
                answer = client.infer(**each)
                together.append(int(answer.as_numpy("together").flat[0]))

    threads = [threading.Thread(target=one, args=(100 + index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 48
    assert max(together) > 1


# -- what changes a server -------------------------------------------------------------------------------------


@pytest.fixture(params=BARE)
def changing(request, triton_factory, model_repository):
    """A gateway before a Triton of the test's own."""
    server = triton_factory(repositories=(model_repository("echo_fp32", "echo_bytes"),))
    with MADE[request.param](server) as found:
        yield found


def test_the_bare_form_may_change_the_server(changing):
    with triton_grpc.InferenceServerClient(changing.grpc_address) as client:
        client.unload_model("echo_bytes")
        assert not client.is_model_ready("echo_bytes")
        override = '{"max_batch_size": 0, "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [2]}]}'
        client.load_model("echo_bytes", config=override)
        assert list(client.get_model_config("echo_bytes").config.input[0].dims) == [2]
        client.unload_model("echo_bytes")
        client.load_model("echo_bytes")
        assert client.is_model_ready("echo_bytes")
        code = (MODELS / "echo_fp32" / "1" / "model.py").read_bytes()
        rows = '{"dims": [-1], "data_type": "TYPE_FP32", "name": '
        config = f'{{"backend": "python", "max_batch_size": 8, "input": [{rows}"x"}}], "output": [{rows}"y"}}]}}'
        client.load_model("elsewhere", config=config, files={"file:3/model.py": code})
        answer = client.infer("elsewhere", [tensor("x", "FP32", np.ones((1, 2), np.float32))])
        assert answer.get_response().model_version == "3"
        with pytest.raises(InferenceServerException, match="fail"):
            client.load_model("spoilt", config=config, files={"file:1/model.py": b"not python"})
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("nobody")
        told = client.update_log_settings({"log_verbose_level": 1, "log_info": True})
        assert told.settings["log_verbose_level"].uint32_param == 1
        told = client.update_trace_settings(settings={"trace_rate": "7"})
        assert list(told.settings["trace_rate"].value) == ["7"]
        told = client.update_trace_settings("echo_fp32", settings={"trace_rate": "9"})
        assert list(told.settings["trace_rate"].value) == ["9"]
        told = client.update_trace_settings("echo_fp32", settings={"trace_rate": None})
        assert list(told.settings["trace_rate"].value) == ["7"]
        in_shared_memory(client)
        texts_in_shared_memory(client)


def in_shared_memory(client):
    """One inference whose tensors are never on the wire."""
    values = RANDOM.standard_normal((1, 8), np.float32)
    region = SharedMemory(create=True, size=2 * values.nbytes)
    try:
        region.buf[: values.nbytes] = values.tobytes()
        client.register_system_shared_memory("r", f"/{region.name}", 2 * values.nbytes)
        assert list(client.get_system_shared_memory_status().regions) == ["r"]
        x = triton_grpc.InferInput("x", [1, 8], "FP32")
        x.set_shared_memory("r", values.nbytes)
        y = triton_grpc.InferRequestedOutput("y")
        y.set_shared_memory("r", values.nbytes, offset=values.nbytes)
        answer = client.infer("echo_fp32", [x], outputs=[y])
        assert list(answer.get_response().raw_output_contents) == [b""]
        assert bytes(region.buf[values.nbytes : 2 * values.nbytes]) == values.tobytes()
        unregister(client, "r")
        assert list(client.get_system_shared_memory_status().regions) == []
    finally:
        region.close()
        region.unlink()


def unregister(client, name=""):
    """Triton 2.51 answers before it has let go of a request's regions, and refuses to forget them meanwhile."""
    for left in reversed(range(UNREGISTER_TRIES)):
        try:
            client.unregister_system_shared_memory(name)
        except InferenceServerException as error:
            if not left or "nregister" not in error.message():
                raise
            time.sleep(0.02)
        else:
            return


def texts_in_shared_memory(client):
    """The same with strings, which have no fixed size."""
    packed = serialize_byte_tensor(texts([b"one", b"", b"three"])).item()
    region = SharedMemory(create=True, size=4096)
    try:
        region.buf[: len(packed)] = packed
        client.register_system_shared_memory("t", f"/{region.name}", 4096)
        text = triton_grpc.InferInput("text", [3], "BYTES")
        text.set_shared_memory("t", len(packed))
        echoed = triton_grpc.InferRequestedOutput("echoed")
        echoed.set_shared_memory("t", len(packed), offset=2048)
        client.infer("echo_bytes", [text], outputs=[echoed])
        assert bytes(region.buf[2048 : 2048 + len(packed)]) == packed
        unregister(client)
    finally:
        region.close()
        region.unlink()


@pytest.mark.parametrize("name", CHANGES)
def test_with_a_file_changes_are_refused_with_the_key_that_allows_them(made, name):
    call, switch = CHANGES[name]
    kind, status, message = outcome(made("routed").grpc_address, call)
    assert (kind, status) == ("error", "StatusCode.PERMISSION_DENIED")
    assert f'"{switch}" in server.allow' in message


def test_a_change_goes_to_every_replica(model_repository, triton_factory, gateway_factory):
    repository = model_repository("echo_fp32")
    servers = [triton_factory(repositories=(repository,)) for _ in range(2)]
    addresses = [server.grpc_address for server in servers]
    gateway = gateway_factory({"server": {"allow": ["repository"]}, "backends": {"b": {"grpc": addresses}}})

    def ready():
        return [server.request("GET", "/v2/models/echo_fp32/ready")[0] == 200 for server in servers]

    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        client.unload_model("echo_fp32")
        assert ready() == [False, False]
        client.load_model("echo_fp32")
        assert ready() == [True, True]
        servers[1].kill()
        with pytest.raises(InferenceServerException, match="does not accept connections"):
            client.unload_model("echo_fp32")
        assert servers[0].request("GET", "/v2/models/echo_fp32/ready")[0] != 200


# -- routes ----------------------------------------------------------------------------------------------------


def test_a_route_with_a_name_of_its_own(made, triton):
    def of(client, model):
        return client.infer(model, REQUESTS["batch"][1], request_id="own").get_response()

    for name in ("routed", "routed, gRPC only"):
        gateway = made(name)
        direct = outcome(triton.grpc_address, partial(of, model="echo_fp32"))
        direct.model_name = "mine"
        assert outcome(gateway.grpc_address, partial(of, model="mine")) == direct
        metadata = outcome(gateway.grpc_address, lambda client: client.get_model_metadata("mine"))
        own = outcome(triton.grpc_address, lambda client: client.get_model_metadata("echo_fp32"))
        own.name, own.platform = "mine", "tailrace"
        assert metadata == own
        for call in (lambda c, m: c.get_model_config(m), lambda c, m: c.get_inference_statistics(m)):
            ours = outcome(gateway.grpc_address, lambda client, call=call: call(client, "mine"))
            assert ours == outcome(triton.grpc_address, lambda client, call=call: call(client, "echo_fp32"))
        assert outcome(gateway.grpc_address, lambda client: client.is_model_ready("mine"))


def test_health_and_reflection(gateway):
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        assert check(b"\x0a\x1einference.GRPCInferenceService") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x01x")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        assert database.FindFileContainingSymbol("inference.ModelInferRequest").package == "inference"


def test_the_http_door_before_grpc_alone(made, triton):
    """The other way round: HTTP callers before a backend that is configured with gRPC only."""
    import tritonclient.http as triton_http

    def ask(address):
        with triton_http.InferenceServerClient(address) as client:
            x = triton_http.InferInput("x", [2, 3], "FP32")
            x.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
            answer = client.infer("two_outputs", [x], request_id="7")
            for coding in ("gzip", "deflate"):
                again = client.infer(
                    "two_outputs", [x], request_compression_algorithm=coding, response_compression_algorithm=coding
                )
                assert again.as_numpy("A").tolist() == answer.as_numpy("A").tolist()
            settled(triton, "two_outputs")
            text = triton_http.InferInput("text", [2], "BYTES")
            text.set_data_from_numpy(texts([b"a", b"bc"]), binary_data=False)
            words = client.infer("echo_bytes", [text], outputs=[triton_http.InferRequestedOutput("echoed", False)])
            return [
                answer.get_response(), answer.as_numpy("A").tolist(), words.get_response(),
                client.get_server_metadata(), client.get_model_metadata("echo_all"),
                client.get_model_config("accumulating"), client.get_inference_statistics("two_outputs"),
                client.get_model_repository_index(), client.get_trace_settings(), client.get_log_settings(),
                client.get_system_shared_memory_status(), client.is_model_ready("nobody"), client.is_server_live(),
            ]  # fmt: skip

    given, direct = ask(made("gRPC only").http_address), ask(triton.http_address)
    times = given[6]["model_stats"][0], direct[6]["model_stats"][0]
    assert times[0]["inference_count"] + 3 == times[1]["inference_count"]
    given[6] = direct[6] = None
    assert given == direct


@pytest.mark.parametrize("way", ["directly", "through", "by a route"])
def test_a_server_that_goes_away_in_the_middle_of_a_stream(triton_factory, gateway_factory, way):
    server = triton_factory("decoupled")
    address, model = server.grpc_address, "decoupled"
    if way == "through":
        address = gateway_factory(None, ["--upstream", f"grpc://{server.grpc_address}"]).grpc_address
    elif way == "by a route":
        model, routes = "route", {"route": {"tiers": [{"backend": "b", "model": "decoupled"}]}}
        address = gateway_factory({"backends": {"b": {"grpc": [server.grpc_address]}}, "routes": routes}).grpc_address
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, [count(500)])
        assert answers.get(timeout=20)[1] is None
        server.kill()
        end = time.monotonic() + 20
        error = None
        while error is None and time.monotonic() < end:
            _, error = answers.get(timeout=20)
        assert "UNAVAILABLE" in str(error)
        client.stop_stream(cancel_requests=True)


def test_a_sequence_goes_on_by_another_way(model_repository, triton_factory, gateway_factory):
    """By single calls of a route, which go over HTTP here, and on a stream, which goes over gRPC."""
    repository = model_repository("accumulating")
    servers = [triton_factory(repositories=(repository,)) for _ in range(2)]
    known = {"http": [server.http_url for server in servers], "grpc": [server.grpc_address for server in servers]}
    routes = {"accumulating": {"tiers": [{"backend": "b", "model": "accumulating"}], "cache": {"ttl": "1h"}}}
    gateway = gateway_factory({"backends": {"b": known}, "routes": routes})
    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        for sequence in range(1, 9):
            first, second, third = steps(sequence, [1, 2, 4])
            assert client.infer(**first).as_numpy("sum").flat[0] == 1
            (answer,) = streamed(client, [(1, second)])
            assert int.from_bytes(answer.raw_output_contents[0], "little") == 3
            assert client.infer(**third).as_numpy("sum").flat[0] == 7
    assert all(settled(server, "accumulating").requests for server in servers)


def test_a_sequence_stays_with_one_replica_and_ends_with_an_error_if_that_dies(
    model_repository, triton_factory, gateway_factory
):
    repository = model_repository("accumulating")
    servers = [triton_factory(repositories=(repository,)) for _ in range(2)]
    gateway = gateway_factory({"backends": {"b": {"grpc": [server.grpc_address for server in servers]}}})
    with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        going = {sequence: list(steps(sequence, [1, 2, 3, 4])) for sequence in range(1, 9)}
        for step in range(3):
            for sequence, asked in going.items():
                total = int(client.infer(**asked[step]).as_numpy("sum").flat[0])
                assert total == [1, 3, 6][step], sequence
        counts = [settled(server, "accumulating").requests for server in servers]
        assert sum(counts) == 24
        assert all(number % 3 == 0 for number in counts)
        assert min(counts) > 0
        servers[0].kill()
        ended = 0
        for asked in going.values():
            try:
                total = int(client.infer(**asked[3]).as_numpy("sum").flat[0])
            except InferenceServerException as error:
                ended += 1
                assert "UNAVAILABLE" in str(error.status()) or "START" in error.message()  # noqa: PT017
            else:
                assert total == 10  # it lives at the other one
        assert ended == counts[0] // 3, "each sequence that lived there, and no other"
