"""Parameters that mean something to Triton itself, and what they must be.

Rule of this file: a table of names and kinds. Triton answers a wrong one with 500, as if it had failed; who
sent it is told here, and no model hears of it. What is not in the table is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tiers.inference import SHARED_MEMORY_PARAMETER, Parameter, Parameters
from tiers.v2.message import Malformed, shown

_Kind = tuple[str, Callable[[Parameter], bool]]


def _is_count(value: Parameter) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_COUNT: Final[_Kind] = ("a whole number, 0 or more", _is_count)
_FLAG: Final[_Kind] = ("true or false", lambda value: isinstance(value, bool))
_NAME: Final[_Kind] = ("a string", lambda value: isinstance(value, str))
_COUNT_OR_NAME: Final[_Kind] = (
    "a whole number, 0 or more, or a string",
    lambda value: isinstance(value, str) or _is_count(value),
)

_REGION: Final[Mapping[str, _Kind]] = {
    SHARED_MEMORY_PARAMETER: _NAME,
    "shared_memory_offset": _COUNT,
    "shared_memory_byte_size": _COUNT,
}

OF_REQUESTS: Final[Mapping[str, _Kind]] = {
    "sequence_id": _COUNT_OR_NAME,
    "sequence_start": _FLAG,
    "sequence_end": _FLAG,
    "priority": _COUNT,
    "timeout": _COUNT,
}
OF_INPUTS: Final = _REGION
OF_OUTPUTS: Final[Mapping[str, _Kind]] = {**_REGION, "classification": _COUNT}


def check_reserved(parameters: Parameters, kinds: Mapping[str, _Kind], owner: str) -> None:
    """Whether each parameter that has a kind is of it; raises Malformed."""
    if not parameters:
        return
    for name, (wanted, fits) in kinds.items():
        if name in parameters and not fits(parameters[name]):
            raise Malformed("parameters", f"parameter {shown(name)} in {owner} must be {wanted}")
