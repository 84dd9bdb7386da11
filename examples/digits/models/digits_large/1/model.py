"""The large tier: an RBF support vector machine and 150 randomised trees, their probabilities averaged.

Its cost is real work (walking the trees, and the kernel against every support vector), not a sleep.
"""

from pathlib import Path

import joblib
import numpy
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        self.members = joblib.load(Path(args["model_repository"], args["model_version"], "members.joblib"))

    def execute(self, requests):
        images = [utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        rows = numpy.concatenate(images)
        probabilities = numpy.mean([member.predict_proba(rows) for member in self.members], axis=0)
        cuts = numpy.cumsum([len(rows) for rows in images])[:-1]
        return [self._answer(rows) for rows in numpy.split(probabilities, cuts)]

    def _answer(self, probabilities):
        labels = probabilities.argmax(axis=1).astype(numpy.int64).reshape(-1, 1)
        return utils.InferenceResponse(
            [
                utils.Tensor("probabilities", probabilities.astype(numpy.float32)),
                utils.Tensor("label", labels),
            ]
        )
