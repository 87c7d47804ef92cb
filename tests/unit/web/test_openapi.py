"""The OpenAPI document is that of the contract, and valid."""

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from adjourn.web.rest.application import SERVICES
from tests.harness.openapi_client import DOCUMENT


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(DOCUMENT.read_text())


def test_a_validator_accepts_it(document: Any) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_method_is_in_it_with_what_the_contract_says(document: Any) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    methods = {method.name[:1].lower() + method.name[1:] for service in SERVICES for method in service.methods}
    assert {operation["operationId"] for operation in operations} == methods
    assert all(operation["summary"] and operation["description"] for operation in operations)
    fields = [
        (name, field, schema)
        for name, message in document["components"]["schemas"].items()
        for field, schema in message.get("properties", {}).items()
        if field != "@type"
    ]
    assert [(name, field) for name, field, schema in fields if not schema.get("description")] == []


def test_paths_parameters_and_bodies_are_those_of_the_annotations(document: Any) -> None:
    pause = document["paths"]["/v1/jobs/{job}:pause"]["post"]
    assert [each["name"] for each in pause["parameters"]] == ["job"]
    body = document["components"]["schemas"]["PauseJobRequest"]["properties"]
    assert list(body) == ["mode", "reason", "etag", "requestId"], "what is in the path is not in the body"
    update = document["paths"]["/v1/jobs/{job}"]["patch"]
    assert [each["name"] for each in update["parameters"]] == ["job", "updateMask", "requestId"]
    assert not any(each.get("required") for each in update["parameters"][1:])
    watch = document["paths"]["/v1/jobs:watch"]["get"]
    assert {"Last-Event-ID", "last_event_id"} <= {each["name"] for each in watch["parameters"]}
    assert list(watch["responses"]["200"]["content"]) == ["text/event-stream"]
