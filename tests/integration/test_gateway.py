"""The gateway over a control plane: calls, refusals, uploads, and what browsers may not do."""

import asyncio
import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.rpc import status_pb2
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from adjourn import bundles
from adjourn.errors import from_status
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.web.rest import documentation
from adjourn.web.rest.application import BODY_LIMIT_BYTES
from adjourn.web.rest.uploads import SCRIPT_LIMIT_BYTES
from adjourn.web.settings import Settings
from tests.harness.control_planes import Replica
from tests.harness.gateways import Gateway, gateway

VENDOR = documentation.VIEWER / "vendor"
SPEC = {"entryPoint": "train:main", "totalEpochs": 3}


@pytest.fixture
async def web(idle_plane: Replica) -> AsyncIterator[Gateway]:
    async with gateway(idle_plane.address) as served:
        yield served


def reason(answer: httpx.Response) -> str:
    """Returns the reason of a refusal, which is a google.rpc.Status."""
    assert answer.headers["content-type"] == "application/json"
    error = from_status(json_format.Parse(answer.content, status_pb2.Status()))
    assert answer.json()["code"] == error.code
    assert answer.json()["message"]
    return error.reason


async def test_the_calls_of_a_job(web: Gateway, idle_plane: Replica) -> None:
    made = await web.http.post("/v1/jobs", params={"jobId": "a"}, json={"spec": SPEC, "labels": {"team": "x"}})
    assert made.status_code == 200, made.text
    assert made.json()["name"] == "jobs/a"
    assert made.json()["state"] == "QUEUED"
    listed = await web.http.get("/v1/jobs", params={"labels[team]": "x", "states": "QUEUED"})
    assert [job["name"] for job in listed.json()["jobs"]] == ["jobs/a"]
    assert (await web.http.get("/v1/jobs", params={"labels.team": "y"})).json() == {}
    changed = await web.http.patch("/v1/jobs/a", json={**made.json(), "spec": {"maxRestarts": 9}, "labels": {}})
    assert (changed.json()["spec"]["maxRestarts"], changed.json().get("labels")) == (9, None)
    paused = await web.http.post("/v1/jobs/a:pause", json={"reason": "lunch"}, headers={"Adjourn-Actor": "ann"})
    assert paused.json()["state"] == "PAUSED"
    assert paused.json()["holds"][0] | {"createTime": ""} == {
        "kind": "USER",
        "actor": "ann",
        "reason": "lunch",
        "createTime": "",
    }
    stale = await web.http.post("/v1/jobs/a:resume", json={"etag": made.json()["etag"]})
    assert (stale.status_code, reason(stale)) == (409, "ETAG_STALE")
    assert (await web.http.post("/v1/jobs/a:resume")).json()["state"] == "QUEUED"
    held = await web.http.post("/v1/jobs:hold", json={"all": True})
    assert held.json()["jobs"][0]["changed"] is True
    refused = await web.http.delete("/v1/jobs/a")
    assert (refused.status_code, reason(refused)) == (400, "JOB_NOT_FINISHED")
    assert (await web.http.post("/v1/jobs/a:cancel")).json()["state"] == "CANCELLED"
    events = (await web.http.get("/v1/jobs/a/events")).json()["events"]
    assert [event["actor"] for event in events if event["type"] == "CREATED"] == ["http@127.0.0.1"]
    deleted = await web.http.delete("/v1/jobs/a")
    assert (deleted.status_code, deleted.json()) == (200, {})
    assert {JobEvent.Type.Value(event["type"]) for event in events} >= {JobEvent.CREATED, JobEvent.CANCELLED}


async def test_a_retry_with_the_same_request_id_has_the_first_answer(web: Gateway) -> None:
    params = {"requestId": "7b7e3f0a-1c1e-4a0e-9d7f-0a7f3a7e9c11"}
    answers = [await web.http.post("/v1/jobs", params=params, json={"spec": SPEC}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert len((await web.http.get("/v1/jobs")).json()["jobs"]) == 1


REFUSALS: Sequence[tuple[str, str, Mapping[str, Any], int, str]] = [
    ("GET", "/v1/jobs/none", {}, 404, "NOT_FOUND"),
    ("GET", "/v1/jobs/none%2F", {}, 400, "INVALID_REQUEST"),
    ("GET", "/v1/nothing", {}, 404, "PATH_UNKNOWN"),
    ("PUT", "/v1/jobs", {}, 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v1/jobs/a:pause", {}, 405, "METHOD_NOT_ALLOWED"),
    ("DELETE", "/v1/bundles", {}, 405, "METHOD_NOT_ALLOWED"),
    ("GET", "/v1/jobs?pageSize=x", {}, 400, "INVALID_REQUEST"),
    ("GET", "/v1/jobs?colour=red", {}, 400, "INVALID_REQUEST"),
    ("GET", "/v1/jobs", {"headers": {"grpc-timeout": "soon"}}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"content": b"{"}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"content": b"\xff"}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"content": b'{"spec": {}, "spec": {}}'}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"content": b"[" * 100_000}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"json": {"spec": {"colour": "red"}}}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"json": {}}, 400, "INVALID_REQUEST"),
    ("POST", "/v1/jobs", {"content": b" " * (BODY_LIMIT_BYTES + 1)}, 413, "BODY_TOO_LARGE"),
    ("POST", "/v1/bundles", {"json": {}}, 415, "MEDIA_TYPE_UNKNOWN"),
    ("GET", "/v1/jobs", {"headers": {"Host": "adjourn.evil.example"}}, 403, "FOREIGN_REQUEST"),
    ("POST", "/v1/jobs/a:cancel", {"headers": {"Origin": "https://evil.example"}}, 403, "FOREIGN_REQUEST"),
    ("POST", "/v1/jobs/a:cancel", {"headers": {"Origin": "null"}}, 403, "FOREIGN_REQUEST"),
    ("POST", "/v1/jobs/a:cancel", {"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "FOREIGN_REQUEST"),
    ("GET", "/v1/jobs:watch?names=Wrong", {}, 400, "INVALID_REQUEST"),
    ("GET", "/v1/jobs/none:streamLogs", {}, 404, "NOT_FOUND"),
    ("GET", "/v1/jobs/none:streamLogs?last_event_id=x", {}, 400, "INVALID_REQUEST"),
    ("GET", "/v1/jobs/none/checkpoints/1-1:read", {}, 404, "NOT_FOUND"),
]


async def test_a_refusal_is_a_status(web: Gateway) -> None:
    for method, path, options, status, wanted in REFUSALS:
        answer = await web.http.request(method, path, **options)
        assert (answer.status_code, reason(answer)) == (status, wanted), (method, path, options, answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_a_field_that_is_wrong_is_named_and_405_says_what_is_allowed(web: Gateway) -> None:
    answer = await web.http.post("/v1/jobs", json={"spec": {"colour": "red"}})
    violations = [detail["fieldViolations"] for detail in answer.json()["details"] if "fieldViolations" in detail]
    assert violations == [[{"field": "job.spec.colour", "description": "is no field"}]]
    assert (await web.http.put("/v1/jobs")).headers["allow"] == "POST, GET"


async def test_an_outage_is_told_with_when_to_come_back() -> None:
    async with gateway("127.0.0.1:1") as web:
        answer = await web.http.get("/v1/jobs", timeout=20)
        assert (answer.status_code, reason(answer)) == (503, "CONTROL_PLANE_UNREACHABLE")
        assert "no control plane answers at 127.0.0.1:1" in answer.json()["message"]
        assert (await web.http.get("/healthz")).text == "ok\n"
        late = await web.http.get("/v1/jobs", headers={"grpc-timeout": "1m"})
        assert late.status_code in (503, 504)


async def test_other_sites_may_call_if_they_are_allowed(idle_plane: Replica) -> None:
    settings = Settings(
        listen="127.0.0.1:0",
        address=idle_plane.address,
        hosts=frozenset({"adjourn.example"}),
        origins=frozenset({"https://board.example"}),
    )
    async with gateway(idle_plane.address, settings=settings) as web:
        site = {"Origin": "https://board.example", "Host": "adjourn.example:80"}
        asked = {**site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        allowed = await web.http.options("/v1/jobs", headers=asked)
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "https://board.example"
        assert allowed.headers["access-control-allow-headers"] == "content-type"
        made = await web.http.post("/v1/jobs", headers=site, json={"spec": SPEC})
        assert (made.status_code, made.headers["access-control-allow-origin"]) == (200, "https://board.example")
        other = await web.http.options("/v1/jobs", headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_the_page_itself_may_call(web: Gateway) -> None:
    same = {"Origin": f"http://{web.address}", "Sec-Fetch-Site": "same-origin"}
    assert (await web.http.post("/v1/jobs", headers=same, json={"spec": SPEC})).status_code == 200
    page = await web.http.get("/")
    assert "<!doctype html>" in page.text
    assert page.headers["x-content-type-options"] == "nosniff"


async def test_the_calls_are_documented_and_can_be_tried(web: Gateway) -> None:
    document = await web.http.get("/v1/openapi.json")
    assert document.json()["openapi"] == "3.1.0"
    page = await web.http.get("/v1/docs", follow_redirects=True)
    assert "<openapi-explorer" in page.text
    assert "script-src 'self';" in page.headers["content-security-policy"]
    scripts = re.findall(r'(?:src|href)="(?!/"|\.\./)([^"]+)"', page.text)
    assert len(scripts) == 2
    for script in scripts:
        assert (await web.http.get(f"/v1/docs/{script}")).status_code == 200


def test_third_party_code_is_what_its_table_says() -> None:
    rows = re.findall(r"^\| (\S+\.js) .* \| (\w{64}) \|$", (VENDOR / "README.md").read_text(), re.MULTILINE)
    assert dict(rows) == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.js")}


def packed() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        member = tarfile.TarInfo("train.py")
        member.size = 3 << 20
        archive.addfile(member, io.BytesIO(b"#" * (3 << 20)))
    return data.getvalue()


async def test_code_is_uploaded_and_used(web: Gateway, idle_plane: Replica) -> None:
    archive = {"Content-Type": "application/gzip"}
    sent = await web.http.post("/v1/bundles", content=packed(), headers=archive)
    assert sent.status_code == 200, sent.text
    spec = {**SPEC, "bundle": sent.json()["bundle"]}
    assert (await web.http.post("/v1/jobs", json={"spec": spec})).json()["spec"]["bundle"] == spec["bundle"]
    bad = await web.http.post("/v1/bundles", content=gzip.compress(b"no archive"), headers=archive)
    assert (bad.status_code, reason(bad)) == (400, "INVALID_REQUEST")
    assert list(await idle_plane.objects.list("bundles/")) == [bundles.object_key(spec["bundle"])]


async def test_an_upload_that_is_too_large_is_refused_on_the_way(
    web: Gateway, monkeypatch: pytest.MonkeyPatch, idle_plane: Replica
) -> None:
    monkeypatch.setattr("adjourn.web.rest.uploads.BUNDLE_LIMIT_BYTES", 1 << 20)
    refused = await web.http.post("/v1/bundles", content=b"x" * (2 << 20), headers={"Content-Type": "application/gzip"})
    assert (refused.status_code, reason(refused)) == (413, "BODY_TOO_LARGE")
    assert await idle_plane.objects.list("") == {}


async def test_a_script_becomes_a_bundle(web: Gateway, idle_plane: Replica) -> None:
    script = {"Content-Type": "text/x-python"}
    code = b"import helper_that_is_installed\ndef main(run): ...\n"
    answers = [
        await web.http.post("/v1/bundles", params={"entryPoint": "train:main"}, content=code, headers=headers)
        for headers in (script, {"Content-Type": "application/octet-stream"})
    ]
    assert answers[0].json() == answers[1].json(), "the same script is the same bundle"
    stored = await idle_plane.objects.get(bundles.object_key(answers[0].json()["bundle"]), limit=1 << 20)
    with tarfile.open(fileobj=io.BytesIO(stored)) as archive:
        member = archive.extractfile("train.py")
        assert member
        assert member.read() == code


UNUSABLE = [
    ("train", b"", "must be module:function"),
    ("../x:main", b"", "must be module:function"),
    ("json:main", b"def main(run): ...", "would hide the module 'json'"),
    ("train:main", b"def other(run): ...", "has no function 'main'; it has other"),
    ("train:main", b"def main(run:", "train.py"),
    ("class:main", b"def main(run): ...", "must be a Python identifier"),
]


async def test_a_script_that_no_worker_could_run_is_refused(web: Gateway) -> None:
    for entry_point, code, why in UNUSABLE:
        params, headers = {"entry_point": entry_point}, {"Content-Type": "text/x-python"}
        refused = await web.http.post("/v1/bundles", params=params, content=code, headers=headers)
        assert (refused.status_code, reason(refused)) == (400, "INVALID_REQUEST"), entry_point
        assert why in refused.json()["message"]
        assert "/tmp" not in refused.text


async def test_a_script_has_a_limit(web: Gateway) -> None:
    large = await web.http.post(
        "/v1/bundles?entry_point=a:b", content=b"#" * (SCRIPT_LIMIT_BYTES + 1), headers={"Content-Type": "text/plain"}
    )
    assert (large.status_code, reason(large)) == (413, "BODY_TOO_LARGE")


async def test_a_body_whose_rest_does_not_come_is_given_up(web: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adjourn.web.rest.application.STALL_SECONDS", 0.05)
    host, _, port = web.address.partition(":")
    for path in (b"/v1/bundles", b"/v1/jobs"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/gzip\r\n" % path)
        writer.write(b"Content-Length: 100000\r\n\r\nbeginning")
        assert (await asyncio.wait_for(reader.readline(), 20)).startswith(b"HTTP/1.1 504 ")
        await asyncio.wait_for(reader.readuntil(b"UPLOAD_STALLED"), 20)
        writer.close()


async def test_a_web_socket_is_refused_and_a_name_that_grpc_cannot_carry_is_made_one(
    web: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/v1/jobs:watch", "/"):
        with pytest.raises(InvalidStatus, match="403"):
            await connect(f"ws://{web.address}{path}", proxy=None)
    assert not caplog.records
    actor = {b"Adjourn-Actor": "J\u00f6rg\t\u00e9".encode("latin-1")}
    await web.http.post("/v1/jobs", params={"jobId": "a"}, json={"spec": SPEC}, headers=actor)
    assert (await web.http.get("/v1/jobs/a/events")).json()["events"][0]["actor"] == "J?rg??"


async def test_who_leaves_amid_an_upload_leaves_nothing(web: Gateway, idle_plane: Replica, eventually: Any) -> None:
    host, _, port = web.address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/bundles HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/gzip\r\n")
    writer.write(b"Content-Length: 100000\r\n\r\n" + packed()[:1000])
    await writer.drain()
    writer.close()
    assert (await web.http.get("/v1/jobs")).status_code == 200
    assert await idle_plane.objects.list("") == {}
