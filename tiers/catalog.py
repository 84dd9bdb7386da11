"""What the models say about themselves."""

from __future__ import annotations

from msgspec import Struct


class TensorFact(Struct, frozen=True):
    """One input or output of a model. ``shape`` holds -1 where any size is right, and for a
    batching model starts with the batch dimension (-1), as Triton's metadata has it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class ModelFacts(Struct, frozen=True):
    """A model's own description. ``max_batch`` 0: the model does not batch."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    max_batch: int
    sequence: bool
    decoupled: bool
