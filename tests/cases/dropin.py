"""What tritonclient is asked for over either protocol: one table for both of its libraries, whose clients are alike.

Rule of this file: nothing in it knows which library it is but ``Library``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from tritonclient.utils import InferenceServerException

Call = Callable[[Any], Any]
RANDOM = np.random.default_rng(7)
NUMBERS = {
    "BOOL": np.array([True, False, True]),
    **{
        f"{kind.upper()}{bits}": np.array([0, 1, np.iinfo(f"{kind}{bits}").min, np.iinfo(f"{kind}{bits}").max]).astype(
            f"{kind}{bits}"
        )
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
        if (kind, bits) != ("uint", 64)
    },
    "UINT64": np.array([0, 1, 2**64 - 1], np.uint64),
    "FP16": np.array([0, -0.0, 1.5, 65504, 6e-8, np.inf, np.nan], np.float16),
    "FP32": np.array([0, -0.0, 0.1, 1e-45, 3.4028235e38, 16777217, 123456.789], np.float32),
    "FP64": np.array([0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 1 / 3, 1e21], np.float64),
    "BF16": np.array([0, 1.5, -2, 3e38, np.nan], ml_dtypes.bfloat16),
}
TEXTS = {
    "ascii": [b"a", b"", b"hello world"],
    "unicode": ["déjà vu".encode(), "\U0001f30a".encode(), b'"quoted" \\ / \n\t\x01'],
}
BYTES_ALONE = {"raw": [b"\x00\xff\xfe", b"", bytes(range(256))], "none": []}
"""What JSON cannot say, or says in more than one way."""
BATCH = RANDOM.standard_normal((16, 5), np.float32)
CHANGES: dict[str, tuple[Call, str]] = {
    "load": (lambda client: client.load_model("echo_fp32"), "repository"),
    "unload": (lambda client: client.unload_model("echo_fp32"), "repository"),
    "log": (lambda client: client.update_log_settings({"log_verbose_level": 1}), "logging"),
    "trace": (lambda client: client.update_trace_settings(settings={"trace_rate": "7"}), "trace"),
    "trace of a model": (lambda client: client.update_trace_settings("mine", {"trace_rate": "7"}), "trace"),
    "register": (lambda client: client.register_system_shared_memory("r", "/r", 8), "shared_memory"),
    "unregister": (lambda client: client.unregister_system_shared_memory("r"), "shared_memory"),
    "unregister all": (lambda client: client.unregister_system_shared_memory(), "shared_memory"),
    "register CUDA": (lambda client: client.register_cuda_shared_memory("r", b"AA==", 0, 8), "shared_memory"),
    "unregister CUDA": (lambda client: client.unregister_cuda_shared_memory("r"), "shared_memory"),
}
"""Calls that change a server, and the word in `server.allow` that allows each."""


def texts(values: list[bytes]) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.object_)


class Library:
    """``tritonclient.http`` or ``tritonclient.grpc``."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def tensor(self, name: str, datatype: str, values: np.ndarray[Any, Any], **options: bool) -> Any:
        """An input; ``options`` are the library's own."""
        found = self._module.InferInput(name, list(values.shape), datatype)
        found.set_data_from_numpy(values, **options)
        return found

    def outcome(self, address: str, call: Call) -> Any:
        """What a call gives, or its error's status and message."""
        client = self._module.InferenceServerClient(address)
        try:
            return call(client)
        except InferenceServerException as error:
            return "error", error.status(), error.message()
        finally:
            client.close()

    def requests(self) -> dict[str, tuple[str, list[Any], str]]:
        """Model, inputs and an output's name, of what is said as bytes."""
        tensor = self.tensor
        two = [tensor("int32_in", "INT32", np.arange(3, dtype=np.int32)), tensor("fp32_in", "FP32", NUMBERS["FP32"])]
        return {
            **{
                name: ("echo_all", [tensor(f"{name.lower()}_in", name, values)], f"{name.lower()}_out")
                for name, values in NUMBERS.items()
            },
            **{
                f"BYTES {name}": ("echo_bytes", [tensor("text", "BYTES", texts(values))], "echoed")
                for name, values in (TEXTS | BYTES_ALONE).items()
            },
            "two": ("echo_all", two, "int32_out"),
            "batch": ("echo_fp32", [tensor("x", "FP32", BATCH)], "y"),
            "empty rows": ("echo_fp32", [tensor("x", "FP32", np.zeros((2, 0), np.float32))], "y"),
        }

    def calls(self) -> dict[str, Call]:
        """What is asked beside inference, and about models that are not there."""
        batch = [self.tensor("x", "FP32", BATCH)]
        return {
            "live": lambda client: client.is_server_live(),
            "ready": lambda client: client.is_server_ready(),
            "model ready": lambda client: client.is_model_ready("echo_fp32"),
            "model version ready": lambda client: client.is_model_ready("echo_fp32", "1"),
            "unknown model ready": lambda client: client.is_model_ready("nobody"),
            "server metadata": lambda client: client.get_server_metadata(),
            "metadata": lambda client: client.get_model_metadata("echo_all"),
            "metadata of a version": lambda client: client.get_model_metadata("echo_all", "1"),
            "metadata of an unknown version": lambda client: client.get_model_metadata("echo_all", "9"),
            "metadata of an unknown model": lambda client: client.get_model_metadata("nobody"),
            "config": lambda client: client.get_model_config("echo_bytes"),
            "config of a decoupled model": lambda client: client.get_model_config("decoupled"),
            "config of a model with sequences": lambda client: client.get_model_config("accumulating"),
            "config of an unknown model": lambda client: client.get_model_config("nobody"),
            "statistics": lambda client: client.get_inference_statistics("two_outputs"),
            "all statistics": lambda client: client.get_inference_statistics(),
            "statistics of an unknown model": lambda client: client.get_inference_statistics("nobody"),
            "repository": lambda client: client.get_model_repository_index(),
            "trace settings": lambda client: client.get_trace_settings(),
            "trace settings of a model": lambda client: client.get_trace_settings("echo_fp32"),
            "log settings": lambda client: client.get_log_settings(),
            "shared memory": lambda client: client.get_system_shared_memory_status(),
            "CUDA shared memory": lambda client: client.get_cuda_shared_memory_status(),
            "infer of an unknown model": lambda client: client.infer("nobody", batch),
        }

    def wrong(self) -> dict[str, Call]:
        """Inferences that Triton refuses."""
        pair, batch = np.zeros((1, 2), np.float32), [self.tensor("x", "FP32", BATCH)]
        three = [self.tensor("x", "FP32", np.zeros((1, 2, 3), np.float32))]
        integers = [self.tensor("x", "INT32", np.zeros((1, 2), np.int32))]
        z, x = [self.tensor("z", "FP32", pair)], [self.tensor("x", "FP32", pair)]
        output = [self._module.InferRequestedOutput("C")]
        return {
            "shape": lambda client: client.infer("two_outputs", three),
            "datatype": lambda client: client.infer("echo_fp32", integers),
            "input": lambda client: client.infer("echo_fp32", z),
            "output": lambda client: client.infer("two_outputs", x, outputs=output),
            "version": lambda client: client.infer("echo_fp32", batch, model_version="9"),
        }
