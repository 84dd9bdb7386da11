"""Plain data into frozen structs with *every* fault found, and structs into JSON Schema.

Rule of this file: it knows msgspec and types, not what any key means. A fault is one line that
starts with the dotted path of the key it is about. msgspec alone stops at the first fault; a person
who edits a file wants them all, so the tree is walked here and msgspec converts the leaves.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal, Protocol, TypeVar, Union, runtime_checkable

import msgspec

from gateway.units import DURATION_PATTERN, SIZE_PATTERN, Seconds, Size

S = TypeVar("S", bound=msgspec.Struct)
Fault = tuple[str, str]
"""(key path inside the struct, "" for the struct itself; what is wrong with it)"""


@runtime_checkable
class Checked(Protocol):
    """A struct that knows rules about its own fields beyond their types."""

    def faults(self) -> Iterator[Fault]: ...


_WORDS: Final = re.compile(r"[a-z_0-9]+")


class _Broken:
    """Stands for a value that had faults; they are already in the list."""


_BROKEN: Final = _Broken()


class Reader:
    """Walks one document and collects its faults."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def read(self, raw: object, kind: type[S]) -> S | None:
        """The struct, with defaults where a part was faulty; None if nothing can be made of it."""
        value = self._struct(raw, kind, "")
        return value if isinstance(value, kind) else None

    def fault(self, path: str, message: str) -> None:
        self.faults.append(f"{path}: {message}" if path else message)

    def _value(self, raw: object, annotation: object, path: str) -> object:
        annotation = _without_none(annotation)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            return self._struct(raw, annotation, path)
        if origin is dict:
            return self._mapping(raw, arguments[1], path)
        if origin is tuple:
            return self._sequence(raw, arguments, path)
        if origin is Literal:
            return self._choice(raw, arguments, path)
        try:
            converted: object = msgspec.convert(raw, typing.cast(type[object], annotation), dec_hook=unit)
        except msgspec.ValidationError as error:
            self.fault(path, str(error).partition(" - at `")[0].replace("`", ""))
            return _BROKEN
        return converted

    def _struct(self, raw: object, kind: type[msgspec.Struct], path: str) -> object:
        if not isinstance(raw, Mapping):
            self.fault(path, f"expected a table of keys, got {_named(raw)}")
            return _BROKEN
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key in raw:
            if key not in fields:
                self._unknown(_join(path, str(key)), str(key), fields)
        values: dict[str, object] = {}
        broken: set[str] = set()
        for key, field in fields.items():
            if key not in raw:
                if field.required:
                    self.fault(_join(path, key), "is required")
                    return self._rest(raw, fields, key, path)
                continue
            value = self._value(raw[key], field.type, _join(path, key))
            if not isinstance(value, _Broken):
                values[field.name] = value
                continue
            broken.add(key)
            if field.required:
                return self._rest(raw, fields, key, path)
        made = kind(**values)
        if isinstance(made, Checked):
            for inner, message in made.faults():
                if not broken.intersection(_WORDS.findall(f"{inner} {message}")):  # of defaults in their place
                    self.fault(_join(path, inner), message)
        return made

    def _rest(
        self,
        raw: Mapping[object, object],
        fields: Mapping[str, msgspec.structs.FieldInfo],
        after: str,
        path: str,
    ) -> _Broken:
        """The struct cannot be made; still look at the keys that come after ``after``."""
        seen = False
        for key, field in fields.items():
            if seen and key in raw:
                self._value(raw[key], field.type, _join(path, key))
            elif seen and field.required:
                self.fault(_join(path, key), "is required")
            seen = seen or key == after
        return _BROKEN

    def _mapping(self, raw: object, annotation: object, path: str) -> object:
        if not isinstance(raw, Mapping):
            self.fault(path, f"expected a table of named tables, got {_named(raw)}")
            return _BROKEN
        values = {str(key): self._value(item, annotation, _join(path, str(key))) for key, item in raw.items()}
        return {key: value for key, value in values.items() if not isinstance(value, _Broken)}

    def _sequence(self, raw: object, parts: Sequence[object], path: str) -> object:
        """``parts``: what a tuple is of, one annotation for each place, or one and ``...`` for any number of places."""
        if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
            self.fault(path, f"expected a list, got {_named(raw)}")
            return _BROKEN
        any_number = parts[-1] is ...
        if not any_number and len(raw) != len(parts):
            self.fault(path, f"expected a list of {len(parts)}, got one of {len(raw)}")
            return _BROKEN
        each = [parts[0]] * len(raw) if any_number else parts
        values = [self._value(item, each[index], f"{path}[{index}]") for index, item in enumerate(raw)]
        return _BROKEN if any(isinstance(value, _Broken) for value in values) else tuple(values)

    def _choice(self, raw: object, choices: Sequence[object], path: str) -> object:
        if raw in choices:
            return raw
        known = ", ".join(str(choice) for choice in choices)
        if str(raw) in choices:
            self.fault(path, f'must be in quotes: "{raw}"')
        else:
            self.fault(path, f"{raw!r} is not one of {known}{nearest(str(raw), [str(c) for c in choices])}")
        return _BROKEN

    def _unknown(self, path: str, key: str, known: Iterable[str]) -> None:
        near = nearest(key, list(known))
        self.fault(path, f"unknown key{near}" if near else f"unknown key; known here: {', '.join(known)}")


def unit(kind: type, written: object) -> object:
    """msgspec's dec_hook for the two types with units."""
    if kind is Seconds:
        return Seconds.parse(written)
    if kind is Size:
        return Size.parse(written)
    raise NotImplementedError(kind)


def plain(value: object) -> object:
    """msgspec's enc_hook: how a value with a unit is written."""
    if isinstance(value, Seconds | Size):
        return str(value)
    raise NotImplementedError(type(value))


def json_schema(kind: type[msgspec.Struct]) -> dict[str, object]:
    """The JSON Schema (2020-12) of the document that reads as ``kind``, defaults included."""
    (root,), parts = msgspec.json.schema_components([kind], schema_hook=_unit_schema, ref_template="#/$defs/{name}")
    for struct in _structs(kind, set()):
        properties = typing.cast(dict[str, dict[str, object]], parts[struct.__name__]["properties"])
        for field in msgspec.structs.fields(struct):
            default = default_of(field)
            if default is not None:
                properties[field.encode_name]["default"] = msgspec.to_builtins(default, enc_hook=plain)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": parts}


def default_of(field: msgspec.structs.FieldInfo) -> object:
    """A field's default, made if it comes from a factory; None also when there is no default."""
    if field.default is not msgspec.NODEFAULT:
        return typing.cast(object, field.default)
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None


def _structs(kind: type[msgspec.Struct], seen: set[type[msgspec.Struct]]) -> Iterator[type[msgspec.Struct]]:
    if kind in seen:
        return
    seen.add(kind)
    yield kind
    pending: list[object] = [field.type for field in msgspec.structs.fields(kind)]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            yield from _structs(annotation, seen)
        else:
            pending.extend(typing.get_args(annotation))


def _unit_schema(kind: type) -> dict[str, object]:
    if kind is Seconds:
        return {
            "type": "string",
            "pattern": DURATION_PATTERN,
            "description": "a duration with its unit",
            "examples": ["250ms", "10s", "5m"],
        }
    if kind is Size:
        return {
            "type": "string",
            "pattern": SIZE_PATTERN,
            "description": "a size with its unit",
            "examples": ["16KiB", "64MiB"],
        }
    raise NotImplementedError(kind)


def _without_none(annotation: object) -> object:
    """``X`` of ``X | None``: TOML has no null, so a key is either there or not."""
    if typing.get_origin(annotation) is Annotated:
        inner = typing.get_args(annotation)[0]
        return inner if typing.get_origin(inner) in (Union, types.UnionType) else annotation
    if typing.get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def nearest(word: str, known: Sequence[str]) -> str:
    """What to say after a word that is not known: which of the ``known`` was meant, or nothing."""
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]}?" if near else ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _named(raw: object) -> str:
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    return names.get(type(raw), "a table" if isinstance(raw, Mapping) else type(raw).__name__)
