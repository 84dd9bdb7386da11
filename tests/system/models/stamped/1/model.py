"""Echoes rows and stamps each with when it was computed (``at``, Unix seconds) and by whom (``who``).

A model whose name holds "large" is 1, any other 0. ``p`` is sure of rows that begin with an even number.
A file ``fail`` in the model's directory makes it answer errors, a file ``hang`` makes it wait until it is gone.
"""

import os
import time

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        self.who = 1.0 if "large" in args["model_name"] else 0.0
        self.directory = args["model_repository"]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        if self._told_to("fail"):
            return utils.InferenceResponse([], utils.TritonError("told to fail"))
        while self._told_to("hang"):
            time.sleep(0.02)
        x = utils.get_input_tensor_by_name(request, "x").as_numpy()
        sure = (x[:, :1] % 2) == 0
        outputs = {
            "y": x,
            "p": numpy.where(sure, [[0.9, 0.1]], [[0.5, 0.5]]).astype(numpy.float32),
            "who": numpy.full((len(x), 1), self.who, numpy.float32),
            "at": numpy.full((len(x), 1), time.time(), numpy.float64),
        }
        wanted = request.requested_output_names()
        return utils.InferenceResponse([utils.Tensor(name, outputs[name]) for name in outputs if name in wanted])

    def _told_to(self, what):
        return os.path.exists(os.path.join(self.directory, what))
