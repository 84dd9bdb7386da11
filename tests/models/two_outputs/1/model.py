"""A = x + 1 and B = x * 2, in the shape of x; answers only the outputs that were asked for.

Its response_cache is enabled, so a Triton that runs with a cache shows which answers that cache mixes up.
"""

import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        x = utils.get_input_tensor_by_name(request, "x").as_numpy()
        wanted = request.requested_output_names()
        outputs = {"A": x + 1, "B": x * 2}
        return utils.InferenceResponse(
            [utils.Tensor(name, outputs[name]) for name in outputs if name in wanted]
        )
