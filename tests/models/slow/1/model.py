"""Echoes FP32 rows after the request parameter ``sleep_ms`` (integer, default 200), and once there is a file where the
parameter ``until`` says, if it is given; one request at a time."""

import json
import os
import time

import triton_python_backend_utils as utils

UNTIL_SECONDS_MAX = 60.0  # so that a test which fails holds up nobody else for long


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        parameters = json.loads(request.parameters() or "{}")
        time.sleep(int(parameters.get("sleep_ms", 200)) / 1000)
        end = time.monotonic() + UNTIL_SECONDS_MAX
        while "until" in parameters and not os.path.exists(parameters["until"]) and time.monotonic() < end:
            time.sleep(0.005)
        return utils.InferenceResponse(
            [utils.Tensor("y", utils.get_input_tensor_by_name(request, "x").as_numpy())]
        )
