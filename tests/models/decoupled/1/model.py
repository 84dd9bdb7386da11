"""Answers ``count`` times with 0, 1, 2 and so on: a decoupled (streaming) model, 20 ms between answers."""

import time

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self._stream(request)

    def _stream(self, request):
        sender = request.get_response_sender()
        for n in range(int(utils.get_input_tensor_by_name(request, "count").as_numpy().flat[0])):
            sender.send(utils.InferenceResponse([utils.Tensor("n", numpy.array([n], numpy.int32))]))
            time.sleep(0.02)
        sender.send(flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
