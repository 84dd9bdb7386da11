"""Drop-in: whatever tritonclient asks, the gateway answers with the bytes that Triton itself would give."""

import gzip
import http.client
import json
import zlib
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from examples.gatewayprocess import GatewayProcess
from tests.cases.dropin import CHANGES, NUMBERS, RANDOM, TEXTS, Library, texts

LIBRARY = Library(triton_http)


def tensor(name, datatype, values, binary=True):
    return LIBRARY.tensor(name, datatype, values, binary_data=binary)


def as_json(datatype):
    """(model, inputs, name of the output) for one datatype of the echo model: its finite values."""
    lower = datatype.lower()
    values = NUMBERS[datatype][np.isfinite(NUMBERS[datatype])]
    return "echo_all", [tensor(f"{lower}_in", datatype, values, False)], f"{lower}_out"


REQUESTS = {
    **LIBRARY.requests(),
    **{f"{datatype} JSON": as_json(datatype) for datatype in NUMBERS if datatype not in ("FP16", "BF16")},
    **{
        f"BYTES {name} JSON": ("echo_bytes", [tensor("text", "BYTES", texts(values), False)], "echoed")
        for name, values in TEXTS.items()
    },
    "mixed": (
        "echo_all",
        [tensor("int32_in", "INT32", np.arange(3, dtype=np.int32), False), tensor("fp32_in", "FP32", NUMBERS["FP32"])],
        "int32_out",
    ),
}
ROUTES = ("echo_all", "echo_bytes", "echo_fp32", "two_outputs")


@pytest.fixture(scope="module")
def bare(triton):
    """`tailrace serve --upstream URL`, and nothing else."""
    with GatewayProcess(None, ["--upstream", triton.http_url]) as process:
        yield process


@pytest.fixture(scope="module")
def routed(triton):
    """A gateway with a route of the model's own name for each echo model, and ``mine`` for echo_fp32."""
    routes = {name: {"tiers": [{"backend": "gpu", "model": name}]} for name in ROUTES}
    routes["mine"] = {"tiers": [{"backend": "gpu", "model": "echo_fp32"}]}
    with GatewayProcess({"backends": {"gpu": {"http": [triton.http_url]}}, "routes": routes}) as process:
        yield process


@pytest.fixture(params=["bare", "routed"])
def gateway(request):
    return request.getfixturevalue(request.param)


def exchange(address, method, path, body=None, headers=None):
    """(status, header fields, body)."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


outcome, CALLS, WRONG = LIBRARY.outcome, LIBRARY.calls(), LIBRARY.wrong()


@pytest.mark.parametrize("name", CALLS)
def test_what_tritonclient_asks_beside_inference(bare, triton, name):
    assert outcome(bare.http_address, CALLS[name]) == outcome(triton.http_address, CALLS[name])


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_errors_are_tritons_own(bare, routed, triton, call):
    direct = outcome(triton.http_address, call)
    assert direct[0] == "error"
    assert outcome(bare.http_address, call) == direct
    through_a_route = outcome(routed.http_address, call)  # in the gateway's words: it never reached Triton
    assert (through_a_route[0], through_a_route[1]) == ("error", direct[1])


@pytest.mark.parametrize("binary_answer", [True, False], ids=["binary answer", "JSON answer"])
@pytest.mark.parametrize("name", REQUESTS)
def test_inference_is_equal_byte_by_byte(gateway, bare, triton, name, binary_answer):
    model, inputs, output = REQUESTS[name]
    wanted = [triton_http.InferRequestedOutput(output, binary_data=binary_answer)]
    body, length = triton_http.InferenceServerClient.generate_request_body(inputs, outputs=wanted, request_id="r-1")
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    asked = ("POST", f"/v2/models/{model}/infer", body, headers)
    direct, got = exchange(triton.http_address, *asked), exchange(gateway.http_address, *asked)
    if gateway is bare:
        assert (got[0], got[2]) == (direct[0], direct[2])
    elif binary_answer:
        assert (got[0], got[2]) == (200, direct[2])
        assert b'"id":"r-1"' in got[2]
    elif name == "BYTES raw":  # JSON cannot say it; Triton writes the bytes all the same, and so do we
        assert (got[0], got[2]) == (200, direct[2])
    elif direct[0] != 200:  # FP16 and BF16 have no JSON form
        assert (got[0], "error" in json.loads(got[2])) == (400, True)
        return
    else:
        # Of the decimals that are one and the same number, Triton does not always print the shortest.
        assert (got[0], json.dumps(json.loads(got[2]))) == (200, json.dumps(json.loads(direct[2])))
    for field in ("Content-Type", "Inference-Header-Content-Length"):
        assert got[1].get(field) == direct[1].get(field)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
def test_compression_both_ways(gateway, triton, request_coding, answer_coding):
    def call(client):
        found = client.infer(
            "echo_fp32",
            REQUESTS["batch"][1],
            request_id="compressed",
            request_compression_algorithm=request_coding,
            response_compression_algorithm=answer_coding,
        )
        return found.get_response(), found.as_numpy("y").tobytes()

    assert outcome(gateway.http_address, call) == outcome(triton.http_address, call)
    body, length = triton_http.InferenceServerClient.generate_request_body(REQUESTS["batch"][1])
    headers = {"Inference-Header-Content-Length": str(length)}
    if answer_coding:
        headers["Accept-Encoding"] = answer_coding
    _, fields, packed = exchange(gateway.http_address, "POST", "/v2/models/echo_fp32/infer", body, headers)
    assert fields.get("Content-Encoding") == answer_coding
    plain = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[answer_coding](packed)
    assert plain.startswith(b'{"model_name":"echo_fp32"')


async def test_the_asyncio_client(gateway, triton):
    found = []
    for address in (triton.http_address, gateway.http_address):
        async with triton_aio.InferenceServerClient(address) as client:
            answers = [await client.is_server_live(), await client.is_model_ready("echo_fp32")]
            for model, inputs, output in REQUESTS.values():
                answer = await client.infer(model, inputs, request_id="7")
                given = answer.as_numpy(output)
                answers.append((answer.get_response(), given.tolist() if given.dtype == object else given.tobytes()))
            answers.append(await client.get_model_config("echo_bytes"))
            with pytest.raises(InferenceServerException) as error:
                await client.infer("nobody", inputs)
            answers.append((error.value.status(), error.value.message()))
            found.append(answers)
    assert found[0] == found[1]


async def aio_outcome(address, call):
    """`outcome`, by the asyncio client."""
    async with triton_aio.InferenceServerClient(address) as client:
        try:
            return await call(client)
        except InferenceServerException as error:
            return "error", error.status(), error.message()


@pytest.mark.parametrize("name", CALLS)
async def test_what_the_asyncio_client_asks_beside_inference(bare, triton, name):
    got, direct = [await aio_outcome(address, CALLS[name]) for address in (bare.http_address, triton.http_address)]
    assert got == direct


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
async def test_errors_are_tritons_own_for_the_asyncio_client_too(bare, triton, call):
    direct = await aio_outcome(triton.http_address, call)
    assert direct[0] == "error"
    assert await aio_outcome(bare.http_address, call) == direct


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
async def test_compression_both_ways_by_the_asyncio_client(gateway, triton, request_coding, answer_coding):
    async def call(client):
        codings = {"request_compression_algorithm": request_coding, "response_compression_algorithm": answer_coding}
        found = await client.infer("echo_fp32", REQUESTS["batch"][1], request_id="compressed", **codings)
        return found.get_response(), found.as_numpy("y").tobytes()

    assert await aio_outcome(gateway.http_address, call) == await aio_outcome(triton.http_address, call)


def test_a_route_with_a_name_of_its_own(routed, triton):
    def of(client, model):
        answer = client.infer(model, REQUESTS["batch"][1], request_id="own")
        return answer.get_response(), answer.as_numpy("y").tobytes()

    direct, given = (
        outcome(triton.http_address, lambda c: of(c, "echo_fp32")),
        outcome(routed.http_address, lambda c: of(c, "mine")),
    )
    assert given == ({**direct[0], "model_name": "mine"}, direct[1])
    metadata = outcome(routed.http_address, lambda client: client.get_model_metadata("mine"))
    own = outcome(triton.http_address, lambda client: client.get_model_metadata("echo_fp32"))
    assert metadata == {**own, "name": "mine", "platform": "tailrace"}
    for call in (lambda c, m: c.get_model_config(m), lambda c, m: c.get_inference_statistics(m)):
        ours = outcome(routed.http_address, lambda client, call=call: call(client, "mine"))
        assert ours == outcome(triton.http_address, lambda client, call=call: call(client, "echo_fp32"))
    assert outcome(routed.http_address, lambda client: client.is_model_ready("mine"))


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
def test_generate(bare, triton, path):
    count = 1 if path == "generate" else 4
    asked = ("POST", f"/v2/models/decoupled/{path}", json.dumps({"count": count}))
    direct, given = exchange(triton.http_address, *asked), exchange(bare.http_address, *asked)
    assert (given[0], given[1]["Content-Type"], given[2]) == (200, direct[1]["Content-Type"], direct[2])


def test_a_clients_time_limit(gateway, triton):
    x = triton_http.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.zeros((1, 1), np.float32))
    ended = []
    for server in (gateway, triton):
        with triton_http.InferenceServerClient(server.http_address, network_timeout=0.1) as client:
            with pytest.raises(Exception, match="timed out") as error:
                client.infer("slow", [x], parameters={"sleep_ms": 600})
            ended.append(type(error.value))
    assert ended[0] is ended[1]


def test_twenty_megabytes_there_and_back(bare, triton):
    values = RANDOM.standard_normal((1, 5_000_000), np.float32)

    def call(client):
        return client.infer("echo_fp32", [tensor("x", "FP32", values)]).as_numpy("y").tobytes()

    assert outcome(bare.http_address, call) == values.tobytes()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nobody"),
        ("POST", "/v2/models/echo_fp32"),
        ("GET", "/v2/models/echo_fp32/infer"),
        ("DELETE", "/v2"),
        ("GET", "/v2/models/echo%5Ffp32"),
        ("POST", "/v2/models/echo_fp32/infer"),
        ("GET", "/v2/models/echo_fp32/versions/x"),
        ("GET", "/v2/models/echo_fp32?a=b&c=%20"),
    ],
)
def test_odd_paths_and_methods_are_tritons_to_answer(bare, triton, method, path):
    direct, given = exchange(triton.http_address, method, path), exchange(bare.http_address, method, path)
    assert (given[0], given[2]) == (direct[0], direct[2])


def test_head_is_the_head_of_get(bare):
    got = exchange(bare.http_address, "GET", "/v2/models/echo_fp32")
    head = exchange(bare.http_address, "HEAD", "/v2/models/echo_fp32")
    assert (head[0], head[1]["Content-Length"], head[2]) == (200, got[1]["Content-Length"], b"")


def test_the_bare_form_may_change_the_server(triton_factory, gateway_factory):
    server = triton_factory("echo_fp32", "echo_bytes")
    gateway = gateway_factory(None, ["--upstream", server.http_url])
    assert "callers may change the servers" in gateway.log()
    with triton_http.InferenceServerClient(gateway.http_address) as client:
        client.unload_model("echo_bytes")
        assert not client.is_model_ready("echo_bytes")
        client.load_model("echo_bytes")
        assert client.is_model_ready("echo_bytes")
        assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        assert client.update_trace_settings(settings={"trace_rate": "7"})["trace_rate"] == "7"
        in_shared_memory(client)
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("nobody")


def test_a_change_goes_to_every_replica_and_one_that_is_not_there_is_told(
    model_repository, triton_factory, gateway_factory
):
    """A load balancer would change one of them by chance."""
    repository = model_repository("echo_fp32")
    servers = [triton_factory(repositories=(repository,)) for _ in range(2)]
    urls = [server.http_url for server in servers]
    gateway = gateway_factory({"server": {"allow": ["repository"]}, "backends": {"b": {"http": urls}}})

    def ready():
        return [server.request("GET", "/v2/models/echo_fp32/ready")[0] == 200 for server in servers]

    with triton_http.InferenceServerClient(gateway.http_address) as client:
        client.unload_model("echo_fp32")
        assert ready() == [False, False]
        client.load_model("echo_fp32")
        assert ready() == [True, True]
        servers[1].kill()
        with pytest.raises(InferenceServerException, match="does not accept connections"):
            client.unload_model("echo_fp32")
        assert servers[0].request("GET", "/v2/models/echo_fp32/ready")[0] != 200


def in_shared_memory(client):
    """One inference whose tensors are never on the wire."""
    values = RANDOM.standard_normal((1, 8), np.float32)
    region = SharedMemory(create=True, size=2 * values.nbytes)
    try:
        region.buf[: values.nbytes] = values.tobytes()
        client.register_system_shared_memory("r", f"/{region.name}", 2 * values.nbytes)
        assert [each["name"] for each in client.get_system_shared_memory_status()] == ["r"]
        x = triton_http.InferInput("x", [1, 8], "FP32")
        x.set_shared_memory("r", values.nbytes)
        y = triton_http.InferRequestedOutput("y")
        y.set_shared_memory("r", values.nbytes, offset=values.nbytes)
        client.infer("echo_fp32", [x], outputs=[y])
        assert bytes(region.buf[values.nbytes : 2 * values.nbytes]) == values.tobytes()
        client.unregister_system_shared_memory("r")
        assert client.get_system_shared_memory_status() == []
    finally:
        region.close()
        region.unlink()


@pytest.mark.parametrize("name", CHANGES)
def test_with_a_file_changes_are_refused_with_the_key_that_allows_them(routed, name):
    call, switch = CHANGES[name]
    kind, status, message = outcome(routed.http_address, call)
    assert (kind, status) == ("error", "403")
    assert f'"{switch}" in server.allow' in message


def test_reading_needs_no_permission(routed, triton):
    for name in ("repository", "trace settings", "log settings", "shared memory", "server metadata"):
        assert outcome(routed.http_address, CALLS[name]) == outcome(triton.http_address, CALLS[name])
