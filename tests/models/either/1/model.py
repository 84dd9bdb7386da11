"""y = a + 1, or 10 * b, or the whole numbers, each in its shape, times the parameter ``scale`` (default 1)."""

import json

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        named = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if "a" in named:
            y = named["a"] + 1
        elif "b" in named:
            y = named["b"] * 10
        else:
            y = named["whole"]
        scale = json.loads(request.parameters() or "{}").get("scale", 1)
        outputs = {"y": (y * scale).astype(numpy.float32), "rows": numpy.array([len(y)], numpy.int32)}
        wanted = request.requested_output_names()
        return utils.InferenceResponse([utils.Tensor(name, outputs[name]) for name in outputs if name in wanted])
