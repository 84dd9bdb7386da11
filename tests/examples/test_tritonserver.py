"""The harness itself, on the real server: ready, counted, killed, restarted, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http

from examples import tritonserver
from examples.child import await_empty, group_members
from examples.tritonserver import TritonFailed, TritonMissing, TritonOptions, TritonServer, find_environment

DATATYPES = [
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
]


def infer(server, model, name, array, datatype="FP32", outputs=None, **options):
    """One infer request in binary form, by tritonclient."""
    with triton_http.InferenceServerClient(server.http_address) as client:
        tensor = triton_http.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        wanted = [triton_http.InferRequestedOutput(output) for output in outputs] if outputs else None
        return client.infer(model, [tensor], outputs=wanted, **options)


def test_an_environment_without_triton_says_what_to_do(tmp_path):
    with pytest.raises(TritonMissing, match="make triton") as caught:
        find_environment(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_platform_is_named(monkeypatch):
    monkeypatch.setattr(tritonserver.platform, "machine", lambda: "aarch64")
    with pytest.raises(TritonMissing, match="Linux x86-64 only") as caught:
        find_environment()
    assert "aarch64" in str(caught.value)


def test_a_start_that_fails_shows_the_log_and_leaves_no_process(tmp_path):
    server = TritonServer(TritonOptions(repositories=(tmp_path / "absent",)))
    with pytest.raises(TritonFailed, match="failed to stat"):
        server.start()
    assert not server.running


def test_every_model_is_ready(triton):
    _, body = triton.request("POST", "/v2/repository/index", b"{}")
    states = {model["name"]: model.get("state") for model in json.loads(body)}
    assert set(states.values()) == {"READY"}, states
    assert {"digits_small", "digits_large", "echo_fp32", "two_outputs"} <= set(states)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_echo_all_gives_back_every_datatype_bit_for_bit(triton, datatype):
    data = b"\x01\0\0\0a\x02\0\0\0\xff\0" if datatype == "BYTES" else b"\1" * (2 * size_of(datatype))
    name = f"{datatype.lower()}_in"
    head = {"name": name, "datatype": datatype, "shape": [2], "parameters": {"binary_data_size": len(data)}}
    wanted = [{"name": f"{datatype.lower()}_out", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [head], "outputs": wanted}).encode()
    answer = post(triton, "/v2/models/echo_all/infer", header, data)
    assert answer.endswith(data)


def size_of(datatype):
    return {"BOOL": 1, "BF16": 2}.get(datatype) or int("".join(c for c in datatype if c.isdigit())) // 8


def post(server, path, header, data):
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    connection.request("POST", path, header + data, {"Inference-Header-Content-Length": str(len(header))})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return body


def test_both_tiers_answer_the_held_out_digits(triton, digits):
    accuracy = {}
    for model in ("digits_small", "digits_large"):
        found = []
        for at in range(0, len(digits.images), 64):
            answer = infer(triton, model, "image", digits.images[at : at + 64])
            probabilities, labels = answer.as_numpy("probabilities"), answer.as_numpy("label")
            assert probabilities.dtype == np.float32
            assert labels.dtype == np.int64
            assert labels.shape == (len(probabilities), 1)
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
            found.extend(labels[:, 0])
        accuracy[model] = float(np.mean(np.array(found) == digits.labels))
    assert 0.93 < accuracy["digits_small"] < accuracy["digits_large"]
    assert accuracy["digits_large"] > 0.98


@pytest.mark.parametrize("model", ["digits_small", "digits_large"])
def test_a_row_has_the_same_answer_alone_and_in_a_batch(triton, digits, model):
    batch = infer(triton, model, "image", digits.images[:16]).as_numpy("probabilities")
    for row in range(16):
        alone = infer(triton, model, "image", digits.images[row : row + 1]).as_numpy("probabilities")
        assert alone.tobytes() == batch[row : row + 1].tobytes()


def test_statistics_count_requests_and_rows(triton, counting):
    with counting(triton, "echo_fp32") as counted:
        for _ in range(3):
            infer(triton, "echo_fp32", "x", np.zeros((4, 2), np.float32))
    assert (counted.requests, counted.rows, counted.failed) == (3, 12, 0)


def test_a_stub_can_be_killed_while_the_server_stays_up(triton_factory):
    server = triton_factory("echo_fp32")
    assert len(server.stub_pids("echo_fp32")) == 1
    assert server.stub_pids("slow") == []
    assert server.kill_stub("echo_fp32") == 1
    assert server.running
    assert server.request("GET", "/v2/health/ready")[0] == 200
    with pytest.raises(triton_http.InferenceServerException):
        infer(server, "echo_fp32", "x", np.zeros((1, 2), np.float32))


def test_kill_and_restart_keep_the_ports_and_leave_nothing(triton_factory):
    server = triton_factory("echo_fp32")
    url, group, prefix = server.http_url, server.pid, server._shared_memory_prefix
    server.kill()
    assert not server.running
    assert group_members(group) == {}
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []
    server.start()
    assert server.http_url == url
    assert infer(server, "echo_fp32", "x", np.ones((1, 2), np.float32)).as_numpy("y").tolist() == [[1, 1]]
    group = server.pid
    server.stop()
    assert group_members(group) == {}


def test_a_paused_server_stops_when_told(triton_factory):
    server = triton_factory("echo_fp32")
    group = server.pid
    server.pause()
    with pytest.raises(TimeoutError):
        server.request("GET", "/v2/health/live", seconds=0.2)
    server.resume()
    assert server.request("GET", "/v2/health/live")[0] == 200
    server.pause()
    server.stop()
    assert group_members(group) == {}


def test_a_child_ends_with_its_parent(tmp_path):
    program = (
        "import os, pathlib, sys; from examples.child import Child; "
        "directory = pathlib.Path(sys.argv[1]); "
        "child = Child(['/bin/sh', '-c', 'sleep 600 & wait'], dict(os.environ), directory, 'child'); "
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(tritonserver.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )
    group = int(done.stdout)
    assert await_empty(group, seconds=10.0)


def test_tritons_own_cache_mixes_up_shapes_and_outputs(triton_factory):
    """What two_outputs is for: equal bytes in another shape, and another output, get the first answer again."""
    server = triton_factory("two_outputs", response_cache_bytes=1 << 20)
    flat = np.arange(4, dtype=np.float32).reshape(1, 4)
    first = infer(server, "two_outputs", "x", flat, outputs=["A"])
    assert first.as_numpy("A").tolist() == [[1, 2, 3, 4]]
    square = infer(server, "two_outputs", "x", flat.reshape(2, 2), outputs=["A"])
    assert square.as_numpy("A").shape == (1, 4), "right would be (2, 2)"
    other = infer(server, "two_outputs", "x", flat, outputs=["B"])
    assert other.as_numpy("B") is None, "right would be x * 2"
    assert [output["name"] for output in other.get_response()["outputs"]] == ["A"]
