"""Echoes text, but answers an error that repeats a text that begins with "!", and raises one for "?"."""

import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(utils.get_input_tensor_by_name(request, "text").as_numpy()) for request in requests]

    def _answer(self, text):
        said = text.flat[0].decode()
        if said.startswith("?"):
            raise ValueError(said[1:])
        if said.startswith("!"):
            return utils.InferenceResponse([], utils.TritonError(f"bad value {said[1:]}"))
        return utils.InferenceResponse([utils.Tensor("echoed", text)])
