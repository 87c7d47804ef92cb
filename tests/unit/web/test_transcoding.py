"""HTTP requests become messages of the contract, and messages JSON; what is wrong is named."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.errors import InvalidRequestError
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import (
    CreateJobRequest,
    ListJobsRequest,
    ListResourceSamplesRequest,
    PauseJobRequest,
    UpdateJobRequest,
)
from adjourn.web.rest.application import SERVICES
from adjourn.web.rest.transcoding import Route, Template, parsed, routes, to_json
from tests.harness.contract_messages import messages, requests, sent

ROUTES: Mapping[str, Route] = {route.method.name: route for route in routes(SERVICES)}
OUTPUTS = {route.method.output_type.full_name: route.method.output_type for route in ROUTES.values()}


def same(one: Message, other: Message) -> bool:
    """Compares bytes: NaN is not equal to itself."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_request_goes_through_its_route_and_is_the_same(data: st.DataObject) -> None:
    route = data.draw(st.sampled_from(list(ROUTES.values())))
    message = data.draw(requests(route))
    if route.mask and not message.HasField(route.mask):
        getattr(message, route.mask).SetInParent()
    path, query, body = sent(route, message)
    values = route.template.match(path)
    assert values is not None
    assert same(route.request(values, query, json.loads(json.dumps(body))), message)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_answer_becomes_json_and_the_same_message_again(data: st.DataObject) -> None:
    kind = OUTPUTS[data.draw(st.sampled_from(sorted(OUTPUTS)))]
    message = data.draw(messages(kind))
    assert same(parsed(json.loads(to_json(message)), GetMessageClass(kind)()), message)


def test_every_method_that_is_no_upload_has_a_route() -> None:
    methods = {method.name for service in SERVICES for method in service.methods}
    assert methods - ROUTES.keys() == {"UploadBundle"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/jobs/a", {"GetJob": "jobs/a", "UpdateJob": "jobs/a", "DeleteJob": "jobs/a"}),
        ("/v1/jobs/a/", {}),
        ("/v1/jobs/", {}),
        ("/v1/jobs/a/events", {"ListJobEvents": "jobs/a"}),
        ("/v1/jobs/a%20b/events", {"ListJobEvents": "jobs/a b"}),
        ("/v1/jobs/a%2Fb/events", {"ListJobEvents": "jobs/a%2Fb"}),
        ("/v1/jobs/a%252Fb/events", {"ListJobEvents": "jobs/a%2Fb"}),
        ("/v1/jobs/%ff/events", {"ListJobEvents": "jobs/\ufffd"}),
        ("/v1/jobs/a/checkpoints/1-2:pin", {"PinCheckpoint": "jobs/a/checkpoints/1-2"}),
        ("/v1/other", {}),
    ],
)
def test_a_path_is_taken_apart(path: str, found: Mapping[str, str]) -> None:
    matched = {name: route.template.match(path) for name, route in ROUTES.items()}
    verbs = {name for name, values in matched.items() if values is not None and ROUTES[name].template.verb}
    names = {name: next(iter(values.values()), "") for name, values in matched.items() if values is not None}
    assert {name: value for name, value in names.items() if not verbs or name in verbs} == found


@pytest.mark.parametrize("text", ["v1/jobs", "/v1/{name=**}", "/v1/{name", "", "/v1/a b"])
def test_a_template_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no template"):
        Template.parse(text)


def made(name: str, path: Mapping[str, str], query: Sequence[tuple[str, str]] = (), body: Any = None) -> Message:
    return ROUTES[name].request(path, query, body)


def test_a_body_may_be_a_field_and_the_rest_a_query() -> None:
    body = {"spec": {"entry_point": "train:main", "totalEpochs": "3", "args": {"lr": [0.5, None]}}}
    spec = JobSpec(entry_point="train:main", total_epochs=3)
    spec.args.update({"lr": [0.5, None]})
    wanted = CreateJobRequest(job_id="a", job=Job(spec=spec))
    assert made("CreateJob", {}, [("jobId", "a")], body) == wanted
    assert made("CreateJob", {}, [("job_id", "a")], body) == wanted


def test_a_query_has_lists_maps_and_times() -> None:
    query = [("states", "RUNNING"), ("states", "5"), ("labels.a.b", "c"), ("labels[d]", ""), ("pageSize", "3")]
    wanted = ListJobsRequest(states=[Job.RUNNING, Job.PAUSED], labels={"a.b": "c", "d": ""}, page_size=3)
    assert made("ListJobs", {}, query) == wanted
    request = made("ListResourceSamples", {"parent": "jobs/a"}, [("startTime", "2026-01-02T03:04:05.5Z")])
    assert isinstance(request, ListResourceSamplesRequest)
    assert request.start_time.ToJsonString() == "2026-01-02T03:04:05.500Z"


def test_a_verb_needs_no_body() -> None:
    assert made("PauseJob", {"name": "jobs/a"}) == PauseJobRequest(name="jobs/a")
    wanted = PauseJobRequest(name="jobs/a", mode=PauseMode.STEP)
    assert made("PauseJob", {"name": "jobs/a"}, (), {"mode": "STEP", "name": "jobs/a"}) == wanted


def test_a_patch_changes_what_its_body_names() -> None:
    whole = {
        "name": "jobs/a",
        "etag": "7",
        "state": "RUNNING",
        "labels": {"a": "b"},
        "spec": {"maxRestarts": 0, "total_epochs": 9},
    }
    request = made("UpdateJob", {"job.name": "jobs/a"}, (), whole)
    assert isinstance(request, UpdateJobRequest)
    assert set(request.update_mask.paths) == {"labels", "spec.max_restarts", "spec.total_epochs"}
    assert (request.job.name, request.job.etag) == ("jobs/a", "7")
    narrow = made("UpdateJob", {"job.name": "jobs/a"}, [("updateMask", "spec.totalEpochs")], whole)
    assert isinstance(narrow, UpdateJobRequest)
    assert list(narrow.update_mask.paths) == ["spec.total_epochs"]
    emptied = made("UpdateJob", {"job.name": "jobs/a"}, (), {"labels": {}})
    assert isinstance(emptied, UpdateJobRequest)
    assert list(emptied.update_mask.paths) == ["labels"]


@pytest.mark.parametrize(
    ("name", "query", "body", "field", "why"),
    [
        ("CreateJob", [], {"spec": {"foo": 1}}, "job.spec.foo", "is no field"),
        ("CreateJob", [], {"foo": 1}, "job.foo", "is no field"),
        ("CreateJob", [("foo", "1")], {}, "foo", "is no field; there are jobId, job, requestId"),
        ("CreateJob", [("job.name", "x")], {}, "job.name", "must be in the body"),
        ("CreateJob", [], [], "job", "must be a JSON object"),
        ("CreateJob", [], {"spec": {"totalEpochs": "x"}}, "job.spec.totalEpochs", "invalid literal"),
        ("CreateJob", [], {"spec": {"totalEpochs": 1.5}}, "job.spec.totalEpochs", "parse integer"),
        ("CreateJob", [], {"spec": {"totalEpochs": 2**31}}, "job.spec.totalEpochs", "out of range"),
        ("CreateJob", [], {"spec": {"entryPoint": 3}}, "job.spec.entryPoint", "string"),
        ("CreateJob", [], {"spec": {"hangPolicy": "X"}}, "job.spec.hangPolicy", "Invalid enum value X"),
        ("CreateJob", [], {"spec": {"hangTimeout": "1"}}, "job.spec.hangTimeout", "must end with letter"),
        ("CreateJob", [], {"labels": {"a": 1}}, "job.labels", "string"),
        ("ListJobs", [("states", "SLEEPING")], None, "states", "Invalid enum value SLEEPING"),
        ("ListJobs", [("pageSize", "1"), ("pageSize", "2")], None, "pageSize", "more than once"),
        ("ListJobs", [("labels", "a")], None, "labels", "needs a key"),
        ("ListJobs", [("labels[a", "b")], None, "labels[a", "not closed"),
        ("ListJobs", [("pageSize[a]", "1")], None, "pageSize[a]", "is no map"),
        ("ListJobs", [("pageSize.a", "1")], None, "pageSize.a", "has no fields"),
        ("ListJobs", [], {}, "body", "must be empty"),
        ("StreamLogs", [("follow", "yes")], None, "follow", "must be true or false"),
        ("StreamLogs", [("name", "jobs/b")], None, "name", "in the path alone"),
        ("PauseJob", [("reason", "x")], {}, "reason", "must be in the body"),
        ("PauseJob", [], {"name": "jobs/b"}, "name", "is jobs/a in the path"),
        ("CreateJob", [], {"labels": {"a": "\ud800"}}, "job.labels", "surrogate"),
    ],
)
def test_what_is_wrong_is_named(name: str, query: Sequence[tuple[str, str]], body: Any, field: str, why: str) -> None:
    route = ROUTES[name]
    path = {each.field: "jobs/a" for each in route.template.variables}
    with pytest.raises(InvalidRequestError) as caught:
        route.request(path, query, body)
    assert list(caught.value.violations) == [field], caught.value.violations
    assert why in caught.value.violations[field]


def test_what_is_nested_too_deep_is_refused() -> None:
    deep: Any = 0
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="deep"):
        made("CreateJob", {}, (), {"spec": {"args": {"x": deep}}})
