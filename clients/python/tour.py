"""Pauses a training and resumes it with the Python client: create, watch, pause, wait, resume, wait.

    python tour.py 127.0.0.1:7400 [SPEC]

SPEC: adjourn.v1.JobSpec as JSON. docs/integrating.md explains the parts that are marked as regions here.
"""

import sys
from uuid import uuid4

from google.protobuf.json_format import Parse

from adjourn import Client, errors
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent

SPEC = '{"entry_point": "adjourn.examples.digits:main", "total_epochs": 12, "seed": 7}'


# region connect
def connect(address: str) -> Client:
    return Client(address, timeout=10)  # seconds of each call; the client makes calls again by itself


# endregion


# region create
def create(client: Client, spec: JobSpec) -> Job:
    request_id = str(uuid4())  # left out, the client makes one for its own retries
    job = client.create_job(spec, labels={"by": "python"}, request_id=request_id)
    again = client.create_job(spec, labels={"by": "python"}, request_id=request_id)  # as if the answer had been lost
    assert again.name == job.name
    return job


# endregion


# region watch
def wait_for(client: Client, name: str, state: Job.State.ValueType) -> Job:
    for change in client.watch_jobs(names=[name]):  # goes on from its token when the stream breaks
        if change.deleted or change.job.state in (state, Job.SUCCEEDED, Job.FAILED, Job.CANCELLED):
            assert change.job.state == state, f"{name} is {Job.State.Name(change.job.state)}"
            return change.job
    raise AssertionError("a watch does not end")


# endregion


# region etag
def pause(client: Client, name: str) -> Job:
    while True:
        job = client.get_job(name)
        try:
            return client.pause_job(name, mode=PauseMode.EPOCH, reason="the tour", etag=job.etag)
        except errors.StaleEtagError:
            continue  # it is another job by now than the one that was decided on


# endregion


# region pages
def events(client: Client, name: str) -> list[str]:
    return [JobEvent.Type.Name(event.type) for event in client.list_job_events(name)]  # asks page by page


# endregion


# region errors
def refusal(client: Client, name: str) -> str:
    try:
        client.pause_job(name)
    except errors.AdjournError as error:
        return error.reason
    return ""


# endregion


def main(address: str, spec: str = SPEC) -> None:
    with connect(address) as client:
        name = create(client, Parse(spec, JobSpec())).name
        print(f"created {name}")
        wait_for(client, name, Job.RUNNING)
        print("trains")
        pause(client, name)
        paused = wait_for(client, name, Job.PAUSED)
        print(f"paused after epoch {paused.progress.epoch}: {paused.latest_checkpoint}")
        client.resume_job(name)
        ended = wait_for(client, name, Job.SUCCEEDED)
        print(f"ended after epoch {ended.progress.epoch}")
        print(*events(client, name), sep="\n")
        print(f"a pause is refused now: {refusal(client, name)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
