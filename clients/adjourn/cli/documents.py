"""Messages as documents for programs: their protobuf JSON, with the same bytes for the same message. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from adjourn.cli import yaml_text

WELL_KNOWN = "google.protobuf."


def document(message: Message) -> dict[str, Any]:
    """Returns a message in protobuf JSON: fields in the order of the contract, keys of maps sorted.

    A figure that nobody knows is left out; zeros and empty texts are not.
    """
    return ordered(MessageToDict(message, always_print_fields_with_no_presence=True), message.DESCRIPTOR)


def one_line(message: Message) -> str:
    return json.dumps(document(message), ensure_ascii=False)


def ordered(fields: Mapping[str, Any], descriptor: Any) -> dict[str, Any]:
    return {
        field.json_name: of_field(fields[field.json_name], field)
        for field in descriptor.fields
        if field.json_name in fields
    }


def of_field(value: Any, field: Any) -> Any:
    """Returns a field's value with all that is below it in order. Protobuf gives keys of maps in no order."""
    inner = field.message_type
    if inner is None:
        return value
    if inner.GetOptions().map_entry:
        below = inner.fields_by_name["value"]
        return {key: of_field(value[key], below) for key in sorted(value)}
    if inner.full_name.startswith(WELL_KNOWN):  # times are text, a Struct is what its user made
        return settled(value)
    return [ordered(each, inner) for each in value] if isinstance(value, list) else ordered(value, inner)


def settled(value: Any) -> Any:
    """Returns a value of a Struct: keys sorted, whole numbers without a point, which Struct cannot tell apart."""
    match value:
        case dict():
            return {key: settled(value[key]) for key in sorted(value)}
        case list():
            return [settled(each) for each in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value


def yaml(message: Message) -> str:
    """Returns the document as YAML."""
    return yaml_text.dump(document(message))
