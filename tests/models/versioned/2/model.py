"""Echoes x [n, 4]: each version completes the configuration by itself, with a width of its own."""

import triton_python_backend_utils as utils

WIDTH = 4


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [WIDTH]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [WIDTH]})
        config.set_max_batch_size(8)
        return config

    def execute(self, requests):
        inputs = [utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [utils.InferenceResponse([utils.Tensor("y", values)]) for values in inputs]
