"""Sums up what each sequence has sent so far; ``together`` tells how many requests were in one batch."""

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self._answer(request, len(requests)) for request in requests]

    def _answer(self, request, together):
        def value(name):
            return int(utils.get_input_tensor_by_name(request, name).as_numpy().flat[0])

        sequence = value("CORRID")
        total = (0 if value("START") else self.sums.get(sequence, 0)) + value("x")
        self.sums[sequence] = total
        tensors = {"sum": total, "together": together}
        return utils.InferenceResponse(
            [utils.Tensor(name, numpy.array([[found]], numpy.int32)) for name, found in tensors.items()]
        )
