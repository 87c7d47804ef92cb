"""Both clients and the command line against the real control plane, with its real store and object storage."""

import asyncio
import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from adjourn import AsyncClient, Client, bundles, cli, errors
from adjourn.local import process_cleanup
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from tests.harness.control_planes import ControlPlaneProcess


@pytest.fixture(scope="module")
def control_plane(redis_url: str, s3_environment: dict[str, str], servers: Path) -> Iterator[ControlPlaneProcess]:
    plane = ControlPlaneProcess(
        {
            **s3_environment,
            "ADJOURN_REDIS_URL": redis_url,
            "ADJOURN_NAMESPACE": f"client-{uuid4().hex[:8]}",
            **process_cleanup.marker(servers),
        }
    )
    plane.start()
    yield plane
    plane.kill()


@pytest.fixture
def client(control_plane: ControlPlaneProcess) -> Iterator[Client]:
    with Client(control_plane.address) as client:
        yield client


@pytest.fixture
def name() -> str:
    return f"job-{uuid4().hex[:8]}"


SPEC = JobSpec(entry_point="nowhere:main", total_epochs=3)
BEGINNING = "0-0"
"""Token before the first event of a store."""


def test_a_job_that_no_worker_takes_lives_through_every_verb(client: Client, name: str) -> None:
    job = client.create_job(SPEC, job_id=name, labels={"kind": "idle"})
    assert (job.state, job.name) == (Job.QUEUED, f"jobs/{name}")
    with pytest.raises(errors.AlreadyExistsError):
        client.create_job(SPEC, job_id=name)
    with pytest.raises(errors.JobNotPausedError) as caught:
        client.resume_job(name)
    assert caught.value.metadata["state"] == "QUEUED"
    paused = client.pause_job(name, reason="lunch", etag=job.etag)
    assert paused.state == client.wait_job(name, until=[Job.PAUSED], timeout=30).state == Job.PAUSED
    assert "@" in paused.pause.actor
    with pytest.raises(errors.StaleEtagError):
        client.resume_job(name, etag=job.etag)
    with pytest.raises(errors.JobNotFinishedError):
        client.delete_job(name)
    assert client.resume_job(name).state == Job.QUEUED
    assert client.cancel_job(name).state == Job.CANCELLED
    with pytest.raises(errors.NoCheckpointError):
        client.resume_job(name)
    assert list(client.list_epoch_metrics(name)) == list(client.list_checkpoints(name)) == []
    client.delete_job(name)
    with pytest.raises(errors.NotFoundError):
        client.get_job(name)


def test_events_are_watched_once_each_and_from_a_token(client: Client, name: str) -> None:
    names = [f"jobs/{name}", client.create_job(SPEC, labels={"kind": name}).name]
    client.create_job(SPEC, job_id=name, labels={"kind": name})
    for each in names:
        client.pause_job(each)
    histories = {each: list(client.list_job_events(each)) for each in names}
    count = sum(map(len, histories.values()))
    with contextlib.closing(client.watch_events(labels={"kind": name}, resume_token=BEGINNING)) as told:
        seen = [next(told) for _ in range(count)]
    for each in names:
        assert [message.event for message in seen if message.job == each] == histories[each]
        assert {message.job_uid for message in seen if message.job == each} == {client.get_job(each).uid}
    with contextlib.closing(client.watch_events(labels={"kind": name}, resume_token=seen[2].resume_token)) as told:
        assert [next(told) for _ in seen[3:]] == seen[3:]
    paused = client.watch_events(names=[name], types=[JobEvent.PAUSED], resume_token=seen[0].resume_token)
    with contextlib.closing(paused) as told:
        assert next(told).event.type == JobEvent.PAUSED


def test_a_repeated_request_id_has_one_effect(client: Client, name: str) -> None:
    request_id = str(uuid4())
    first = client.create_job(SPEC, job_id=name, request_id=request_id)
    assert client.create_job(SPEC, job_id=name, request_id=request_id) == first
    with pytest.raises(errors.RequestIdReusedError):
        client.create_job(JobSpec(entry_point="other:main"), job_id=name, request_id=request_id)


def test_bad_fields_are_named_and_nothing_is_stored(client: Client, name: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.create_job(JobSpec(entry_point="no colon", total_epochs=-1), job_id=name)
    assert set(caught.value.violations) == {"job.spec.entry_point", "job.spec.total_epochs"}
    with pytest.raises(errors.NotFoundError):
        client.get_job(name)


def test_a_task_without_epochs_cannot_pause(client: Client, name: str) -> None:
    client.create_job(JobSpec(entry_point="m:f"), job_id=name)
    with pytest.raises(errors.JobNotPausableError):
        client.pause_job(name)


def test_lists_go_on_over_pages(client: Client) -> None:
    labels = {"batch": uuid4().hex[:8]}
    created = [client.create_job(SPEC, labels=labels).name for _ in range(53)]
    assert [job.name for job in client.list_jobs(labels=labels)] == created[::-1]
    assert list(client.list_jobs(labels=labels, states=[Job.PAUSED])) == []


def test_a_bundle_is_stored_under_its_digest(client: Client, name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("def main(run): ...\n")
    (tmp_path / "noise.bin").write_bytes(os.urandom(3 << 20))
    data = bundles.pack(script, [tmp_path / "noise.bin"])
    bundle = client.upload_bundle(data)
    assert bundle == client.upload_bundle(data)
    job = client.create_job(JobSpec(entry_point="train:main", bundle=bundle), job_id=name)
    assert job.spec.bundle == bundle
    with pytest.raises(errors.BundleMissingError, match="upload it again"):
        client.create_job(JobSpec(entry_point="train:main", bundle=f"bundles/{'0' * 64}"))


def test_a_hostile_bundle_is_refused(client: Client) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../evil"))
    for data, why in ((packed.getvalue(), "leads out"), (b"no archive", "not a gzip'ed tar")):
        with pytest.raises(errors.InvalidRequestError, match=why) as caught:
            client.upload_bundle(data)
        assert list(caught.value.violations) == ["chunk"]


def test_a_watch_survives_the_death_of_the_control_plane(
    client: Client, control_plane: ControlPlaneProcess, name: str
) -> None:
    client.create_job(SPEC, job_id=name)
    changes = client.watch_jobs(names=[name])
    assert next(changes).job.state == Job.QUEUED
    control_plane.kill()
    control_plane.start()
    client.pause_job(name)
    assert next(change for change in changes if change.job.state == Job.PAUSED).job.pause.HasField("pause_time")
    client.cancel_job(name)
    client.delete_job(name)
    assert next(change.deleted for change in changes if change.deleted) == f"jobs/{name}"
    changes.close()


async def test_the_asynchronous_client_waits_for_what_others_do(control_plane: ControlPlaneProcess, name: str) -> None:
    async with AsyncClient(control_plane.address) as client:
        await client.create_job(SPEC, job_id=name)
        changes = client.watch_jobs(names=[name])
        assert (await anext(changes)).job.state == Job.QUEUED
        await client.cancel_job(name)
        async with asyncio.timeout(30):
            while (await anext(changes)).job.state != Job.CANCELLED:
                pass  # why it waits in the queue may be told before
        await changes.aclose()
        assert (await client.wait_job(name, timeout=30)).state == Job.CANCELLED


def test_the_command_line_in_a_row(control_plane: ControlPlaneProcess, name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("def main(run): ...\n")

    def adjourn(*words: str, status: int = 0) -> str:
        result = CliRunner().invoke(cli.app, ["--address", control_plane.address, *words])
        assert result.exit_code == status, result.output
        return result.output

    assert "is queued" in adjourn("submit", f"{script}:main", "--epochs", "3", "--name", name, "--arg", "lr=0.001")
    job = json.loads(adjourn("get", name, "-o", "json"))
    assert (job["state"], job["spec"]["args"]) == ("QUEUED", {"lr": 0.001})
    assert "rests before its first epoch ended" in adjourn("pause", name, "--wait", "--reason", "[x]")
    assert "[x]" in adjourn("get", name)
    assert "PAUSED" in adjourn("list", "--state", "paused")
    assert "starts from the beginning" in adjourn("resume", name)
    assert "cancel it before deleting it\n" in adjourn("delete", name, status=1)
    adjourn("cancel", name)
    assert "CANCELLED" in adjourn("watch", name, status=5)
    assert "is deleted" in adjourn("delete", name)
    assert f"there is no jobs/{name}" in adjourn("get", name, status=3)
