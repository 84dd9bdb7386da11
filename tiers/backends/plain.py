"""A protobuf message as plain Python for JSON, the way Triton's HTTP door writes it.

Rule of this file: names as in the .proto, 64 bit numbers as numbers (protobuf's own JSON has them as strings, which
Triton's does not), enums by name, bytes in base64, defaults told too.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_MESSAGE: Final = FieldDescriptor.TYPE_MESSAGE
_ENUM: Final = FieldDescriptor.TYPE_ENUM
_BYTES: Final = FieldDescriptor.TYPE_BYTES


def plain(message: Message) -> dict[str, object]:
    """The message's fields; of messages within it and of a oneof, those that are there."""
    found: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            entry = field.message_type.fields_by_name if field.message_type is not None else {}
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            if is_map:
                found[field.name] = {str(key): _value(entry["value"], value[key]) for key in value}
            else:
                found[field.name] = [_value(field, each) for each in value]
        elif not field.has_presence or message.HasField(field.name):
            found[field.name] = _value(field, value)
    return found


def _value(field: FieldDescriptor, value: Any) -> object:  # whatever the field's type is
    if field.type == _MESSAGE:
        return plain(value)
    if field.type == _ENUM:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if field.type == _BYTES:
        return base64.b64encode(value).decode()
    return value
