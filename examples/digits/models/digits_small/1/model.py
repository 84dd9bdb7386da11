"""The fast tier: multinomial logistic regression over 64 pixels, as one matrix product.

All requests that Triton batched are computed in one product. float64 inside, FP32 outside, so that a row's
answer does not depend on what it was batched with.
"""

from pathlib import Path

import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        with numpy.load(Path(args["model_repository"], args["model_version"], "weights.npz")) as weights:
            self.weights, self.bias = weights["weights"], weights["bias"]

    def execute(self, requests):
        images = [utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        probabilities = self._probabilities(numpy.concatenate(images))
        cuts = numpy.cumsum([len(rows) for rows in images])[:-1]
        return [self._answer(rows) for rows in numpy.split(probabilities, cuts)]

    def _probabilities(self, images):
        scores = images.astype(numpy.float64) @ self.weights + self.bias
        scores = numpy.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def _answer(self, probabilities):
        labels = probabilities.argmax(axis=1).astype(numpy.int64).reshape(-1, 1)
        return utils.InferenceResponse(
            [
                utils.Tensor("probabilities", probabilities.astype(numpy.float32)),
                utils.Tensor("label", labels),
            ]
        )
