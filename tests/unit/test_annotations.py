"""The google.api annotations of the contract say what a gateway and a generator of clients need, and are true."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.api import annotations_pb2, client_pb2, field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from adjourn.v1 import checkpoint_pb2, checkpoint_service_pb2, job_pb2, job_service_pb2, worker_pb2, worker_service_pb2

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (job_service_pb2, "JobService"),
        (checkpoint_service_pb2, "CheckpointService"),
        (worker_service_pb2, "WorkerService"),
    )
]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
UNARY = [method for method in METHODS if not method.client_streaming and not method.server_streaming]
RESOURCES: list[Descriptor] = [
    job_pb2.Job.DESCRIPTOR,
    checkpoint_pb2.Checkpoint.DESCRIPTOR,
    worker_pb2.Worker.DESCRIPTOR,
]
PATTERNS = {
    re.sub(r"\{\w+\}", "*", pattern)
    for message in RESOURCES
    for pattern in message.GetOptions().Extensions[resource_pb2.resource].pattern
}


def rule(method: MethodDescriptor) -> Any:
    return method.GetOptions().Extensions[annotations_pb2.http]


def path(method: MethodDescriptor) -> str:
    return str(getattr(rule(method), rule(method).WhichOneof("pattern")))


def variables(method: MethodDescriptor) -> Iterator[tuple[str, str]]:
    """Yields the fields that the path of a method takes, each with its template."""
    yield from re.findall(r"\{([a-z_.]+)=([^}]+)\}", path(method))


def field(message: Descriptor, dotted: str) -> FieldDescriptor:
    """Returns the field at a path; raises KeyError."""
    head, _, rest = dotted.partition(".")
    found: FieldDescriptor = message.fields_by_name[head]
    if not rest:
        return found
    assert found.message_type
    return field(found.message_type, rest)


def behaviour(of: FieldDescriptor) -> set[str]:
    values = of.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return {field_behavior_pb2.FieldBehavior.Name(value) for value in values}


def name(method: MethodDescriptor) -> str:
    return str(method.name)


@pytest.mark.parametrize("method", UNARY, ids=name)
def test_each_call_has_a_path_whose_fields_exist(method: MethodDescriptor) -> None:
    assert method.GetOptions().HasExtension(annotations_pb2.http)
    assert path(method).startswith("/v1/")
    for dotted, template in variables(method):
        found = field(method.input_type, dotted)
        assert found.type == FieldDescriptor.TYPE_STRING
        assert template in PATTERNS
        assert behaviour(found) & {"REQUIRED", "IDENTIFIER"}


@pytest.mark.parametrize("method", UNARY, ids=name)
def test_a_path_takes_the_name_wherever_the_request_has_one(method: MethodDescriptor) -> None:
    named = {each.name for each in method.input_type.fields} & {"name", "parent"}
    assert named <= {dotted for dotted, _ in variables(method)}


@pytest.mark.parametrize("method", UNARY, ids=name)
def test_a_body_is_there_where_the_verb_takes_one_and_its_field_exists(method: MethodDescriptor) -> None:
    verb, body = rule(method).WhichOneof("pattern"), rule(method).body
    assert bool(body) == (verb in {"post", "patch"})
    assert body in {"", "*"} or body in method.input_type.fields_by_name


def test_no_two_calls_have_one_verb_and_path() -> None:
    taken = [(rule(method).WhichOneof("pattern"), re.sub(r"\{[a-z_.]+=", "{", path(method))) for method in UNARY]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_signatures_name_fields_that_exist(method: MethodDescriptor) -> None:
    for signature in method.GetOptions().Extensions[client_pb2.method_signature]:
        assert all(field(method.input_type, dotted) for dotted in signature.split(","))


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_name_in_a_request_is_required(method: MethodDescriptor) -> None:
    for each in method.input_type.fields:
        if each.name in {"name", "parent"}:
            assert behaviour(each) == {"REQUIRED"}, each.full_name


@pytest.mark.parametrize("message", RESOURCES, ids=lambda message: str(message.name))
def test_a_resource_is_declared_and_has_an_identifier(message: Descriptor) -> None:
    declared = message.GetOptions().Extensions[resource_pb2.resource]
    assert declared.type == f"adjourn.v1/{message.name}"
    assert declared.pattern[0].startswith(("jobs/{job}", "workers/{worker}"))
    assert behaviour(message.fields_by_name["name"]) == {"IDENTIFIER"}
