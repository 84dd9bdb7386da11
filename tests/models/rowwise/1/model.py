"""Gives back each input with its rows turned round, and for each row a word made of all that is in it: an answer that
depends on its own row alone, and on all of it. A row takes as many milliseconds as the parameter ``row_ms`` says.

BF16 has no numpy type, and Triton's own conversion refuses it: its bits are read and written as UINT16, by the word
for the element's kind in DLPack's struct (dlpack.h: ``DLTensor.dtype.code``)."""

import ctypes
import hashlib
import json
import time

import numpy
import triton_python_backend_utils as utils

CODE_BYTE = 20  # of DLTensor: after a pointer, a device (two int32) and ndim (int32)
UINT, BFLOAT = 1, 4

pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Relabelled:
    """A DLPack capsule whose elements are said to be of another kind, of as many bits."""

    def __init__(self, capsule, kind):
        ctypes.c_uint8.from_address(pointer_of(capsule, b"dltensor") + CODE_BYTE).value = kind
        self.capsule = capsule

    def __dlpack__(self, stream=None):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)  # the CPU


def values_of(tensor):
    if tensor.name() == "bf16_in":
        return numpy.from_dlpack(Relabelled(tensor.to_dlpack(), UINT))
    return tensor.as_numpy()


def tensor_of(name, values):
    if name == "bf16_out":
        bits = utils.Tensor(name, values)  # Triton's own capsule: it marks one that it has read as numpy's cannot bear
        return utils.Tensor.from_dlpack(name, Relabelled(bits.to_dlpack(), BFLOAT).capsule)
    return utils.Tensor(name, values)


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        outputs, rows = [], None
        wanted = request.requested_output_names()
        for tensor in sorted(request.inputs(), key=lambda tensor: tensor.name()):
            values = values_of(tensor)
            rows = rows or [hashlib.blake2b(digest_size=8) for _ in range(len(values))]
            for row, said in zip(values, rows, strict=True):
                said.update(repr(row.tolist()).encode())
            name = tensor.name().replace("_in", "_out")
            if name in wanted:
                outputs.append(tensor_of(name, values[:, ::-1].copy()))
        time.sleep(len(rows) * float(json.loads(request.parameters() or "{}").get("row_ms", 0)) / 1000)
        if "said" in wanted:
            outputs.append(utils.Tensor("said", numpy.array([[said.hexdigest()] for said in rows], object)))
        return utils.InferenceResponse(outputs)
