"""What a message's members hold: names, texts and parameters, each within its bound.

Rule of this file: one member at a time; tensors' data is ``tensors.py``'s.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tiers.inference import NO_PARAMETERS, Parameter, Parameters
from tiers.v2.message import Limits, Malformed, check_count, shown

OVERFLOW: Final = 2**63
"""The first number that a signed 64 bit integer does not hold."""

WireParameters = dict[str, Parameter | None] | msgspec.UnsetType


def present(*values: object) -> int:
    """How many of these members are there."""
    return sum(value is not msgspec.UNSET for value in values)


def counted(parameters: WireParameters) -> int:
    """How many members an object of parameters has."""
    return 0 if parameters is msgspec.UNSET else len(parameters)


def text(value: str | msgspec.UnsetType, what: str, limits: Limits) -> str:
    """A string within its bound, "" for one that is not there; raises Malformed."""
    if value is msgspec.UNSET:
        return ""
    if len(value) > limits.name_bytes_max or len(value.encode()) > limits.name_bytes_max:
        raise Malformed("name", f"{what} is longer than {limits.name_bytes_max} bytes: {shown(value)}")
    return value


def named(value: str, what: str, limits: Limits) -> str:
    """A name within its bound and not empty; raises Malformed."""
    if not value:
        raise Malformed("name", f"an {what} has an empty name")
    return text(value, f"the name of an {what}", limits)


def parameters_of(value: WireParameters, owner: str, limits: Limits) -> Parameters:
    """Parameters within their bounds; raises Malformed."""
    if value is msgspec.UNSET or not value:
        return NO_PARAMETERS
    check_count(f"parameters in {owner}", len(value), limits.parameters_max)
    held: dict[str, Parameter] = {}
    for name, item in value.items():
        text(name, f"the name of a parameter in {owner}", limits)
        if "\0" in name:
            raise Malformed("parameters", f"the name of a parameter in {owner} holds a NUL: {shown(name)}")
        if item is None:
            raise Malformed("parameters", f"parameter {shown(name)} in {owner} is null")
        held[name] = item
        if isinstance(item, str):
            text(item, f"parameter {shown(name)} in {owner}", limits)
        elif isinstance(item, int) and not -OVERFLOW <= item < 2 * OVERFLOW:
            raise Malformed("parameters", f"parameter {shown(name)} in {owner} does not fit 64 bits")
    return held


def without(parameters: Parameters, *names: str) -> Parameters:
    """The other parameters."""
    kept = {name: value for name, value in parameters.items() if name not in names}
    return kept or NO_PARAMETERS
