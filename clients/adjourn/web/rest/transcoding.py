"""PURE. HTTP requests as messages of the contract, by its `google.api.http` annotations.

A route is found by the templates of the annotations, and a request is made of path, query and body as Envoy's
transcoder and others make it: JSON as protobuf defines it, `jobs/*` in a path, `spec.seed=7` in a query.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import unquote

from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from adjourn.errors import InvalidRequestError

VERBS: Final = ("get", "put", "post", "delete", "patch")
WHOLE_BODY: Final = "*"
FIELD_MASK: Final = "google.protobuf.FieldMask"
PLAIN: Final = frozenset(
    f"google.protobuf.{name}"
    for name in (
        *("Timestamp", "Duration", "FieldMask", "BoolValue", "BytesValue", "DoubleValue", "FloatValue"),
        *("Int32Value", "Int64Value", "StringValue", "UInt32Value", "UInt64Value"),
    )
)
"""Messages that JSON shows as one value, not as an object."""
OPAQUE: Final = PLAIN | {f"google.protobuf.{name}" for name in ("Any", "Struct", "Value", "ListValue")}
"""Messages whose fields JSON does not show under their names."""
SPOKEN_FOR: Final = frozenset({field_behavior_pb2.IDENTIFIER, field_behavior_pb2.OUTPUT_ONLY})
"""Behaviour of fields that nobody changes: AIP-203 has them passed over."""
ETAG: Final = "etag"
"""A field of this name is a condition of a change, not a change: AIP-154."""


class NoSuchFieldError(ValueError):
    """A path names no field of the message; the text says what there is."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A field that a path has the value of."""

    field: str
    begin: int
    end: int
    """Its segments of the template: `begin` is the first, `end` the first that is not its own."""


@dataclass(frozen=True, slots=True)
class Template:
    """The template of a path, `/v1/{name=jobs/*}:pause`."""

    segments: tuple[str, ...]
    """Literals, and `*` for any one segment."""
    variables: tuple[Variable, ...]
    verb: str
    """What follows the colon; empty: there is none."""

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Reads a template; raises ValueError for what the contract does not use, `**` and fields within fields."""
        path, _, verb = text.partition(":")
        segments: list[str] = []
        variables = []
        if not re.fullmatch(r"(/([\w.-]+|\*|\{[\w.]+(=[\w.*/-]+)?\}))+", path) or "**" in path:
            raise ValueError(f"{text} is no template that is known here")
        for part in re.findall(r"\{[^}]*\}|[^/{}]+", path):
            field, _, pattern = part.strip("{}").partition("=")
            pieces = (pattern or "*").split("/") if part.startswith("{") else [part]
            if part.startswith("{"):
                variables.append(Variable(field, len(segments), len(segments) + len(pieces)))
            segments += pieces
        return cls(tuple(segments), tuple(variables), verb)

    def match(self, path: str) -> dict[str, str] | None:
        """Returns the value of each variable in a path as it was sent, percent-encoded; None: it is another path."""
        if self.verb:
            path, colon, verb = path.rpartition(":")
            if not colon or verb != self.verb:
                return None
        parts = path.removeprefix("/").split("/")
        if len(parts) != len(self.segments) or not all(map(fits, self.segments, parts)):
            return None
        return {each.field: "/".join(decoded(parts[each.begin : each.end])) for each in self.variables}


def fits(segment: str, part: str) -> bool:
    return bool(part) if segment == "*" else segment == part


def decoded(parts: Sequence[str]) -> Iterator[str]:
    """Yields segments of a variable, decoded. A slash within one of several stays encoded: it would be another name."""
    for part in parts:
        yield unquote(part) if len(parts) == 1 else "%2F".join(map(unquote, re.split("%2[Ff]", part)))


@dataclass(frozen=True)
class Route:
    """A method of the contract, and how HTTP calls it."""

    method: MethodDescriptor
    verb: str
    """Of HTTP, in capitals."""
    path: str
    template: Template
    body: str
    """The field that the body is; `*`: the request itself; empty: there is no body."""

    @cached_property
    def request_type(self) -> type[Message]:
        return GetMessageClass(self.method.input_type)

    @cached_property
    def response_type(self) -> type[Message]:
        return GetMessageClass(self.method.output_type)

    @cached_property
    def mask(self) -> str:
        """The field mask that a PATCH fills from its body where the query has none; empty: there is none."""
        if self.verb != "PATCH" or self.body in ("", WHOLE_BODY):
            return ""
        masks = (
            field.name
            for field in self.method.input_type.fields
            if field.message_type and field.message_type.full_name == FIELD_MASK
        )
        return next(masks, "")

    def request(self, values: Mapping[str, str], query: Sequence[tuple[str, str]], body: Any) -> Message:
        """Returns the message for the values of a path, the pairs of a query, and the JSON of a body.

        `body` is None without one. Raises InvalidRequestError, which names each field by its path in the request.
        """
        wrong: dict[str, str] = {}
        tree = self._planted(body, wrong)
        masked = tuple(changed(body, self.method.input_type.fields_by_name[self.body])) if self.mask else ()
        for name, given in grouped(query).items():
            try:
                self._hang(tree, name, given)
            except ValueError as error:
                wrong[name] = str(error)
        for name, value in values.items():
            found = put(tree, self.method.input_type, name, value)
            if found not in (None, value):
                wrong[name] = f"is {value} in the path, and another in the body"
        if wrong:
            raise InvalidRequestError(wrong)
        message = parsed(tree, self.request_type())
        if self.mask and not message.HasField(self.mask):
            getattr(message, self.mask).paths.extend(masked)
        return message

    def _planted(self, body: Any, wrong: dict[str, str]) -> dict[str, Any]:
        """Returns the tree of the request with what its body says."""
        if body is None:
            return {}
        if not self.body:
            wrong["body"] = "must be empty: the request is in path and query"
            return {}
        if not isinstance(body, dict):
            wrong["body" if self.body == WHOLE_BODY else self.body] = "must be a JSON object"
            return {}
        if self.body == WHOLE_BODY:
            return dict(body)
        return {self.method.input_type.fields_by_name[self.body].json_name: body}

    def _hang(self, tree: dict[str, Any], name: str, given: Sequence[str]) -> None:
        """Puts the values of a query's name into the tree; raises ValueError."""
        if self.body == WHOLE_BODY:
            raise NoSuchFieldError("must be in the body, as all of the request")
        names, field, key = resolved(self.method.input_type, name)
        taken = {each.field for each in self.template.variables}
        if ".".join(names) in taken:
            raise NoSuchFieldError("must be in the path alone")
        if names[0] == self.body:
            raise NoSuchFieldError("must be in the body")
        if key is not None:
            assert field.message_type is not None
            value_field = field.message_type.fields_by_name["value"]
            entry = put(tree, self.method.input_type, ".".join(names), None) or {}
            entry[key] = value_of(value_field, only(given))
            put(tree, self.method.input_type, ".".join(names), entry)
        elif field.is_repeated:
            put(tree, self.method.input_type, ".".join(names), [value_of(field, each) for each in given])
        else:
            put(tree, self.method.input_type, ".".join(names), value_of(field, only(given)))


def routes(services: Iterable[ServiceDescriptor]) -> Iterator[Route]:
    """Yields the routes of services, those that are more particular before those that are less."""
    found = [route for service in services for method in service.methods for route in routes_of(method)]
    return iter(sorted(found, key=lambda route: (not route.template.verb, route.template.segments.count("*"))))


def routes_of(method: MethodDescriptor) -> Iterator[Route]:
    """Yields the routes of a method: none without an annotation, several with additional bindings."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        verb = binding.WhichOneof("pattern")
        if verb in VERBS:
            path = getattr(binding, verb)
            yield Route(method, verb.upper(), path, Template.parse(path), binding.body)


def grouped(query: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in query:
        found.setdefault(name, []).append(value)
    return found


def only(given: Sequence[str]) -> str:
    if len(given) > 1:
        raise ValueError("is given more than once")
    return given[0]


def resolved(message: Descriptor, name: str) -> tuple[list[str], FieldDescriptor, str | None]:
    """Returns the path to the field that a query names, the field, and the key if it is of a map.

    `labels.team` and `labels[team]` name an entry of a map. Raises NoSuchFieldError.
    """
    path, bracket, key = name.partition("[")
    if bracket and not key.endswith("]"):
        raise NoSuchFieldError("has a bracket that is not closed")
    names: list[str] = []
    words = path.split(".")
    for position, word in enumerate(words):
        field = field_named(message, word)
        names.append(field.name)
        rest = ".".join(words[position + 1 :])
        if is_map(field):
            if bracket and not rest:
                return names, field, key[:-1]
            if rest and not bracket:
                return names, field, rest
            raise NoSuchFieldError("needs a key, as in labels[team]")
        if not rest:
            if bracket:
                raise NoSuchFieldError("is no map, and has no keys")
            return names, field, None
        if field.message_type is None or field.is_repeated or field.message_type.full_name in OPAQUE:
            raise NoSuchFieldError(f"{'.'.join(names)} has no fields that a query could name")
        message = field.message_type
    raise AssertionError("a name has one word at least")


def field_named(message: Descriptor, word: str) -> FieldDescriptor:
    """Returns a field by its name in the contract, or in JSON; raises NoSuchFieldError."""
    for field in message.fields:
        if word in (field.name, field.json_name):
            return field
    there = ", ".join(field.json_name for field in message.fields)
    raise NoSuchFieldError(f"is no field; there are {there}")


def is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def value_of(field: FieldDescriptor, text: str) -> Any:
    """Returns the JSON of a field for a text; raises ValueError if no text can be its value."""
    if field.type == FieldDescriptor.TYPE_BOOL or (
        field.message_type and field.message_type.full_name == "google.protobuf.BoolValue"
    ):
        if text not in ("true", "false"):
            raise ValueError("must be true or false")
        return text == "true"
    if field.message_type and field.message_type.full_name not in PLAIN:
        raise ValueError("is no single value: name its fields")
    return text


def put(tree: dict[str, Any], message: Descriptor, path: str, value: Any) -> Any:
    """Puts a value at the path of a field, under whichever of its names is there; returns what was there before."""
    *parents, last = path.split(".")
    for name in parents:
        field = message.fields_by_name[name]
        assert field.message_type is not None
        key = key_of(tree, field)
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree[key] = dict(tree[key])
        tree, message = tree[key], field.message_type
    key = key_of(tree, message.fields_by_name[last])
    before = tree.get(key)
    if value is not None:
        tree[key] = value
    return before


def key_of(tree: Mapping[str, Any], field: FieldDescriptor) -> str:
    return field.name if field.name in tree else field.json_name


def changed(body: Any, field: FieldDescriptor, prefix: str = "") -> Iterator[str]:
    """Yields the paths that a body gives values to: what a PATCH without a mask changes.

    Identifiers, what the server alone sets, and etags are no changes.
    """
    assert field.message_type is not None
    for key, value in body.items() if isinstance(body, dict) else ():
        try:
            inner = field_named(field.message_type, key)
        except NoSuchFieldError:
            continue  # it is refused when the body is read
        behaviour = set(inner.GetOptions().Extensions[field_behavior_pb2.field_behavior])
        if behaviour & SPOKEN_FOR or inner.name == ETAG:
            continue
        path = f"{prefix}{inner.name}"
        if isinstance(value, dict) and value and inner.message_type and not is_map(inner):
            if inner.message_type.full_name in OPAQUE:
                yield path
            else:
                yield from changed(value, inner, f"{path}.")
        else:
            yield path


BELOW: Final = re.compile(r"Failed to parse (\w+) field: ")
PLACE: Final = re.compile(r' at "?[\w.\[\]]+"?\.')
UNKNOWN: Final = re.compile(r'Message type "[\w.]+" has no field named "(?P<name>.*?)" at ', re.DOTALL)


def parsed(tree: Mapping[str, Any], message: Message) -> Message:
    """Fills a message from JSON; raises InvalidRequestError for fields that it has not, and for wrong values."""
    try:
        json_format.ParseDict(dict(tree), message)
    except json_format.ParseError as error:
        field, why = located(str(error))
        raise InvalidRequestError({field: why}) from None
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        # The parser lets some through: a lone surrogate, a number as text that is too long.
        raise InvalidRequestError({"body": str(error)}) from None
    except RecursionError:
        raise InvalidRequestError({"body": "is nested too deep"}) from None
    return message


def located(text: str) -> tuple[str, str]:
    """Returns where in the request json_format found something wrong, and what."""
    path: list[str] = []
    while below := BELOW.match(text):
        path.append(below[1])
        text = text[below.end() :]
    if unknown := UNKNOWN.match(text):
        return ".".join((*path, unknown["name"])), "is no field"
    return ".".join(path) or "body", PLACE.split(text)[0].strip(". ")


def to_json(message: Message) -> str:
    """Returns a message as JSON, on one line, by protobuf's own rules: fields that have no value are left out."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False)
