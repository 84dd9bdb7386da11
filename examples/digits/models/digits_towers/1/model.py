"""The ranker: how near the vector of a row's user is to that of its item, from -1 to 1 (see ``towers.py``).

float64 inside, FP32 outside, so that a row's answer does not depend on what it was batched with.
"""

from pathlib import Path

import numpy
import triton_python_backend_utils as utils

PIXEL_MAX = 16.0


class TritonPythonModel:
    def initialize(self, args):
        with numpy.load(Path(args["model_repository"], args["model_version"], "weights.npz")) as weights:
            self.weights = dict(weights)

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        users, items = (self._vectors(side, _pixels(request, f"{side}_pixels")) for side in ("user", "item"))
        score = (users * items).sum(axis=1, keepdims=True).astype(numpy.float32)
        return utils.InferenceResponse([utils.Tensor("score", score)])

    def _vectors(self, side, pixels):
        weights = self.weights
        hidden = numpy.maximum(pixels @ weights[f"{side}_hidden"] + weights[f"{side}_hidden_bias"], 0)
        vectors = hidden @ weights[f"{side}_vector"] + weights[f"{side}_vector_bias"]
        return vectors / (numpy.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6)


def _pixels(request, name):
    return utils.get_input_tensor_by_name(request, name).as_numpy().astype(numpy.float64) / PIXEL_MAX
