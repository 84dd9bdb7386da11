"""Gives back the BYTES elements it was given, unchanged: no batch dimension, any number of elements."""

import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(utils.get_input_tensor_by_name(request, "text")) for request in requests]

    def _answer(self, text):
        return utils.InferenceResponse([utils.Tensor("echoed", text.as_numpy())])
