"""The model that every one of these servers has: its answer is the first ten values of its input.

Rule of this file: plain Python, so that each server's own cost is seen. It runs in environments of their own.
"""

PATH = "/v2/models/bench_fp32/infer"


def answer(request):
    """A KServe v2 request as JSON has it -> its response."""
    values = request["inputs"][0]["data"][:10]
    output = {"name": "y", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return {"model_name": "bench_fp32", "model_version": "1", "id": request["id"], "outputs": [output]}
