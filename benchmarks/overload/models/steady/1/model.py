"""Echoes FP32 values after the configured ``sleep_ms``: eight instances, so eight at once, however busy the machine
is."""

import json
import time

import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self._seconds = int(parameters["sleep_ms"]["string_value"]) / 1000

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        time.sleep(self._seconds)
        return utils.InferenceResponse(
            [utils.Tensor("y", utils.get_input_tensor_by_name(request, "x").as_numpy())]
        )
