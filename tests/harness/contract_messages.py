"""Any message of the contract, and the HTTP request that an honest client makes of one."""

import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from adjourn.web.rest.transcoding import PLAIN, Route, is_map

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SEGMENT = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8)
BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 4) -> Message:
    """Draws a message of a type, with any of its fields set to any value."""
    message = GetMessageClass(descriptor)()
    name = descriptor.full_name.removeprefix("google.protobuf.")
    if name == "Timestamp":
        return message.__class__(
            seconds=draw(st.integers(-62135596800, 253402300799)), nanos=draw(st.integers(0, 999_999_999))
        )
    if name == "Duration":
        sign = draw(st.sampled_from((-1, 1)))
        seconds, nanos = draw(st.integers(0, 315_576_000_000)), draw(st.integers(0, 999_999_999))
        return message.__class__(seconds=sign * seconds, nanos=sign * nanos)
    if name == "FieldMask":
        return message.__class__(paths=draw(st.lists(st.from_regex(r"[a-z]+(_[a-z]+)*", fullmatch=True), max_size=3)))
    if name == "Struct":
        return json_format.ParseDict(draw(st.dictionaries(TEXT, JSON, max_size=3)), message)
    for field in descriptor.fields:
        if draw(st.booleans()) and (depth or field.message_type is None):
            fill(draw, message, field, depth)
    return message


def fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    """Sets a field to any value."""
    if is_map(field):
        assert field.message_type
        key, value = (field.message_type.fields_by_name[each] for each in ("key", "value"))
        getattr(message, field.name).update(draw(st.dictionaries(values(key, 0), values(value, 0), max_size=3)))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(values(field, depth - 1), max_size=2)))
    elif field.message_type:
        getattr(message, field.name).CopyFrom(draw(values(field, depth - 1)))
    else:
        setattr(message, field.name, draw(values(field, depth)))


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Returns a strategy for a value of a field, or for one of several."""
    if field.message_type:
        return messages(field.message_type, depth)
    if field.enum_type:
        return st.sampled_from([each.number for each in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=8)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return TEXT
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.floats(allow_nan=False) | st.just(math.nan)  # JSON tells no NaN from another
        case FieldDescriptor.CPPTYPE_FLOAT:
            return st.floats(width=32, allow_nan=False)
        case kind:
            return st.integers(*BITS[kind])


@st.composite
def requests(draw: st.DrawFn, route: Route) -> Message:
    """Draws a request that a route can carry: what is in its path has a value that fits the template."""
    message = draw(messages(route.method.input_type))
    for variable in route.template.variables:
        segments = route.template.segments[variable.begin : variable.end]
        put(message, variable.field, "/".join(draw(SEGMENT) if each == "*" else each for each in segments))
    return message


def put(message: Any, path: str, value: str) -> None:
    *parents, last = path.split(".")
    for name in parents:
        message = getattr(message, name)
    setattr(message, last, value)


def sent(route: Route, message: Message) -> tuple[str, list[tuple[str, str]], Any]:
    """Returns path, query and JSON body of the HTTP request for a message."""
    tree = json.loads(json_format.MessageToJson(message))
    segments = list(route.template.segments)
    for variable in route.template.variables:
        parts = taken(tree, variable.field).split("/")
        segments[variable.begin : variable.end] = [quote(part, safe="") for part in parts]
    path = "/" + "/".join(segments) + (f":{route.template.verb}" if route.template.verb else "")
    if route.body == "*":
        return path, [], tree
    body = tree.pop(json_name(route.method.input_type, route.body), None) if route.body else None
    return path, list(flat(route.method.input_type, tree)), body


def taken(tree: dict[str, Any], path: str) -> str:
    """Takes a field out of JSON; one that is empty then stays."""
    *parents, last = path.split(".")
    for name in parents:
        tree = tree[name]
    return str(tree.pop(last))


def json_name(message: Descriptor, name: str) -> str:
    return str(message.fields_by_name[name].json_name)


def flat(message: Descriptor, tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields a query for the JSON of a message."""
    for field in message.fields:
        if field.json_name not in tree:
            continue
        name, value = f"{prefix}{field.json_name}", tree[field.json_name]
        if is_map(field):
            yield from ((f"{name}[{key}]", text(each)) for key, each in value.items())
        elif field.is_repeated:
            yield from ((name, text(each)) for each in value)
        elif field.message_type and field.message_type.full_name not in PLAIN:
            yield from flat(field.message_type, value, f"{name}.")
        else:
            yield name, text(value)


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
