"""The model of the table of malformed requests: gives back x, takes one optional input of many datatypes."""

import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(utils.get_input_tensor_by_name(request, "x")) for request in requests]

    def _answer(self, x):
        return utils.InferenceResponse([utils.Tensor("y", x.as_numpy())])
