"""Echoes FP32 rows, but answers an error if the first element is negative, and NaN for rows that hold 13."""

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(utils.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def _answer(self, x):
        if x.size and x.flat[0] < 0:
            return utils.InferenceResponse([], utils.TritonError("told to fail by a negative first element"))
        return utils.InferenceResponse([utils.Tensor("y", numpy.where(x == 13, numpy.float32("nan"), x))])
