"""Echoes FP32 rows after the request parameter ``sleep_ms`` (integer, default 200), one request at a time."""

import json
import time

import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        parameters = json.loads(request.parameters() or "{}")
        time.sleep(int(parameters.get("sleep_ms", 200)) / 1000)
        return utils.InferenceResponse(
            [utils.Tensor("y", utils.get_input_tensor_by_name(request, "x").as_numpy())]
        )
