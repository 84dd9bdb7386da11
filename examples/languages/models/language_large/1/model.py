"""The large tier: lingua, n-grams of one to five letters, its models in its wheel. Slower, and right more often on
short text."""

import json

import numpy
import triton_python_backend_utils as utils
from lingua import IsoCode639_1, LanguageDetectorBuilder

UNDETERMINED = "und"


class TritonPythonModel:
    def initialize(self, args):
        self.languages = json.loads(args["model_config"])["parameters"]["languages"]["string_value"].split()
        codes = [getattr(IsoCode639_1, language.upper()) for language in self.languages]
        # Preloaded: some seconds before the model is ready, instead of within the first callers' requests.
        builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
        self.detector = builder.with_preloaded_language_models().build()

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
        told = self.detector.compute_language_confidence_values(text)
        values = {each.language.iso_code_639_1.name.lower(): each.value for each in told}
        return [values[language] for language in self.languages]
