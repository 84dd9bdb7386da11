"""Adds up what a sequence has sent so far: a stateful model, whose state lives in this one server."""

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        self._sums = {}

    def execute(self, requests):
        return [utils.InferenceResponse([self._add(request)]) for request in requests]

    def _add(self, request):
        def value(name):
            return int(utils.get_input_tensor_by_name(request, name).as_numpy().flat[0])

        sequence = value("sequence")
        before = 0 if value("start") else self._sums[sequence]
        self._sums[sequence] = before + value("x")
        return utils.Tensor("sum", numpy.array([[self._sums[sequence]]], numpy.int32))
