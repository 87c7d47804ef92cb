"""PURE. The contract's HTTP as an OpenAPI 3.1 document, from its descriptors and their comments."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

from adjourn.web.rest.transcoding import WHOLE_BODY, Route, is_map, routes_of

Json = dict[str, Any]

DESCRIPTION: Final = """\
Runs training jobs that can be paused on one worker and resumed on another, to the same result.

The same calls as over gRPC, with JSON as protobuf maps it: names in lowerCamelCase, enums by name, 64-bit integers as
text, and fields that have no value left out. An error is a `google.rpc.Status` with its details. Every call takes the
headers `adjourn-actor` (who calls; recorded, not checked) and `grpc-timeout` (`5S`, `500m`). Retries of a call that
changes something are safe with the same `requestId`.
"""
STREAM: Final = (
    "Server-sent events. `data` of each is one message; `id` is where to go on. An event `error` has a "
    "`google.rpc.Status`, and is the last."
)
LAST_EVENT: Final = "The `id` of the last event that arrived, to go on after it; browsers send it by themselves."
RESUMING: Final[Sequence[Json]] = tuple(
    {"name": name, "in": place, "description": LAST_EVENT, "schema": {"type": "string"}}
    for name, place in (("Last-Event-ID", "header"), ("last_event_id", "query"))
)
NUMBER: Final[Json] = {
    "anyOf": [{"type": "number", "format": "double"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]
}
SCALARS: Final[Mapping[int, Json]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_DOUBLE: NUMBER,
}
WELL_KNOWN: Final[Mapping[str, Json]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Empty": {"type": "object"},
}
STATUS: Final[Json] = {
    "type": "object",
    "description": "Why a call was refused. `details` has a `google.rpc.ErrorInfo` with a reason of docs/reasons.md.",
    "properties": {
        "code": {"type": "integer", "format": "int32", "description": "A `google.rpc.Code`."},
        "message": {"type": "string", "description": "For people."},
        "details": {
            "type": "array",
            "description": "Typed details; `@type` says of which type each is.",
            "items": {
                "type": "object",
                "properties": {"@type": {"type": "string"}},
                "additionalProperties": True,
            },
        },
    },
}
BUNDLES: Final[Json] = {
    "post": {
        "operationId": "uploadBundle",
        "tags": ["JobService"],
        "summary": "UploadBundle",
        "description": (
            "Stores code for jobs; the same bytes give the same name. The body is a bundle, as clients pack it, or one "
            "script: a bundle is made of that, and a worker imports it as the module of `entryPoint`."
        ),
        "parameters": [
            {
                "name": "entryPoint",
                "in": "query",
                "description": "Of a script: `train:main` for a function `main` of train.py. Required for one.",
                "schema": {"type": "string", "pattern": r"^\w+:\w+$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        "responses": {
            "200": {
                "description": "The bundle's name.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/UploadBundleResponse"}}},
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
}


def document(services: Sequence[ServiceDescriptor], files: FileDescriptorSet) -> Json:
    """Returns the document for services; `files` has the comments."""
    told = dict(comments(files))
    schemas = Schemas(told)
    paths: dict[str, Json] = {}
    for route in (route for service in services for method in service.methods for route in routes_of(method)):
        path, parameters = templated(route)
        paths.setdefault(path, {})[route.verb.lower()] = operation(route, parameters, schemas, told)
    paths["/v1/bundles"] = BUNDLES
    schemas.of_type(services[0].file.message_types_by_name["UploadBundleResponse"])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Adjourn",
            "version": "v1",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": each.name, "description": told.get(each.full_name, "")} for each in services],
        "paths": paths,
        "components": {
            "schemas": {**dict(sorted(schemas.made.items())), "Status": STATUS},
            "responses": {
                "Error": {
                    "description": "The call was refused, or failed.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}},
                }
            },
        },
    }


def operation(route: Route, parameters: list[Json], schemas: "Schemas", told: Mapping[str, str]) -> Json:
    """Returns what a document says of one method."""
    method = route.method
    text = told.get(method.full_name, "")
    made: Json = {
        "operationId": method.name[:1].lower() + method.name[1:],
        "tags": [method.containing_service.name],
        "summary": method.name,
        "description": text,
        "parameters": [*parameters, *asked(route, schemas), *(RESUMING if resumable(method) else ())],
        "responses": {"200": answer(method, schemas), "default": {"$ref": "#/components/responses/Error"}},
    }
    if route.body:
        made["requestBody"] = {
            "required": route.body != WHOLE_BODY,
            "content": {"application/json": {"schema": body(route, schemas)}},
        }
    return made


def templated(route: Route) -> tuple[str, list[Json]]:
    """Returns the path as OpenAPI writes it, and its parameters: `jobs/*` becomes `jobs/{job}`, as resources say."""
    segments = list(route.template.segments)
    parameters = []
    for position, segment in enumerate(segments):
        if segment == "*":
            collection = segments[position - 1]
            name = collection.removesuffix("s")
            segments[position] = f"{{{name}}}"
            what = "name" if position == len(segments) - 1 else "parent"
            description = f"Last segment of the {what}, `{collection}/{{{name}}}`."
            parameters.append(
                {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
            )
    verb = f":{route.template.verb}" if route.template.verb else ""
    return f"/{'/'.join(segments)}{verb}", parameters


def asked(route: Route, schemas: "Schemas") -> Iterator[Json]:
    """Yields the parameters of a query: fields that are neither in path nor body."""
    if route.body == WHOLE_BODY:
        return
    taken = {variable.field for variable in route.template.variables} | {route.body}
    for field in route.method.input_type.fields:
        if field.name in taken:
            continue
        made: Json = {"name": field.json_name, "in": "query"}
        if is_map(field):
            made |= {"style": "deepObject", "explode": True}
        if required(field) and field.name != route.mask:
            made["required"] = True
        schema = schemas.of_field(field)
        if text := schema.pop("description", ""):
            made["description"] = text
        yield {**made, "schema": schema}


def body(route: Route, schemas: "Schemas") -> Json:
    """Returns the schema of a body: of a field, or of the request without what is in the path."""
    if route.body != WHOLE_BODY:
        return schemas.of_field(route.method.input_type.fields_by_name[route.body])
    return schemas.of_type(route.method.input_type, without={each.field for each in route.template.variables})


def resumable(method: MethodDescriptor) -> bool:
    return method.server_streaming and not is_file(method)


def is_file(method: MethodDescriptor) -> bool:
    return bool(method.name == "ReadCheckpoint")


def answer(method: MethodDescriptor, schemas: "Schemas") -> Json:
    """Returns what a document says of the answer of a method."""
    if is_file(method):
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        return {"description": "The bytes of the file.", "content": content}
    schema = schemas.of_type(method.output_type)
    if not method.server_streaming:
        return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}
    events = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    return {"description": STREAM, "content": {"text/event-stream": {"schema": events}}}


def required(field: FieldDescriptor) -> bool:
    return field_behavior_pb2.REQUIRED in behaviour(field)


def behaviour(field: FieldDescriptor) -> Sequence[int]:
    return list(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])


class Schemas:
    """Schemas of messages and enums, made as they are referred to."""

    def __init__(self, told: Mapping[str, str]) -> None:
        self.told = told
        self.made: dict[str, Json] = {}

    def of_type(self, message: Descriptor, without: Iterable[str] = ()) -> Json:
        """Returns a reference to the schema of a message, without some of its fields; or the schema of a known one."""
        if message.full_name in WELL_KNOWN:
            return dict(WELL_KNOWN[message.full_name])
        name = short(message)
        if name not in self.made:
            self.made[name] = {}  # a message may have itself in it
            left_out = set(without)
            properties = {
                field.json_name: self.of_field(field) for field in message.fields if field.name not in left_out
            }
            self.made[name] = described({"type": "object", "properties": properties}, self.told.get(message.full_name))
        return {"$ref": f"#/components/schemas/{name}"}

    def of_enum(self, enum: EnumDescriptor) -> Json:
        name = short(enum)
        if name not in self.made:
            values = {value.name: self.told.get(f"{enum.full_name}.{value.name}", "") for value in enum.values}
            lines = [self.told.get(enum.full_name, ""), "", *(f"- {value}: {text}" for value, text in values.items())]
            self.made[name] = {"type": "string", "enum": list(values), "description": "\n".join(lines).strip()}
        return {"$ref": f"#/components/schemas/{name}"}

    def of_field(self, field: FieldDescriptor) -> Json:
        """Returns the schema of a field, with what its comment says."""
        if is_map(field):
            assert field.message_type
            made: Json = {
                "type": "object",
                "additionalProperties": self.of_value(field.message_type.fields_by_name["value"]),
            }
        elif field.is_repeated:
            made = {"type": "array", "items": self.of_value(field)}
        else:
            made = self.of_value(field)
        if field_behavior_pb2.OUTPUT_ONLY in behaviour(field):
            made["readOnly"] = True
        return described(made, self.told.get(field.full_name))

    def of_value(self, field: FieldDescriptor) -> Json:
        if field.message_type:
            return self.of_type(field.message_type)
        return self.of_enum(field.enum_type) if field.enum_type else dict(SCALARS[field.type])


def described(schema: Json, text: str | None) -> Json:
    return {**schema, "description": text} if text else schema


def short(of: Descriptor | EnumDescriptor) -> str:
    """Returns the name of a type without its package: `JobSpec.Retention`."""
    return of.full_name.removeprefix(f"{of.file.package}.")


def comments(files: FileDescriptorSet) -> Iterator[tuple[str, str]]:
    """Yields the full name of everything that has a comment, and the comment."""
    for file in files.file:
        names = dict(named(file))
        for location in file.source_code_info.location:
            text = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", location.leading_comments))
            if text.strip() and (name := names.get(tuple(location.path))):
                yield name, text.strip()


Place = tuple[int, ...]


def named(file: FileDescriptorProto) -> Iterator[tuple[Place, str]]:
    """Yields places in a file, as google.protobuf.SourceCodeInfo counts, and the full name of what is there."""
    for number, message in enumerate(file.message_type):
        yield from of_message(message, (4, number), f"{file.package}.{message.name}")
    for number, enum in enumerate(file.enum_type):
        yield from of_enum(enum, (5, number), f"{file.package}.{enum.name}")
    for number, service in enumerate(file.service):
        yield (6, number), f"{file.package}.{service.name}"
        for each, method in enumerate(service.method):
            yield (6, number, 2, each), f"{file.package}.{service.name}.{method.name}"


def of_message(message: DescriptorProto, place: Place, name: str) -> Iterator[tuple[Place, str]]:
    yield place, name
    for number, field in enumerate(message.field):
        yield (*place, 2, number), f"{name}.{field.name}"
    for number, nested in enumerate(message.nested_type):
        yield from of_message(nested, (*place, 3, number), f"{name}.{nested.name}")
    for number, enum in enumerate(message.enum_type):
        yield from of_enum(enum, (*place, 4, number), f"{name}.{enum.name}")


def of_enum(enum: EnumDescriptorProto, place: Place, name: str) -> Iterator[tuple[Place, str]]:
    yield place, name
    for number, value in enumerate(enum.value):
        yield (*place, 2, number), f"{name}.{value.name}"
