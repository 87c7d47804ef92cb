"""The tour of `clients/python/tour.py` by HTTP, with a client that was generated as the package `generated`.

    python openapi_tour.py 127.0.0.1:7480 SPEC

A program: it takes a job through a pause and a resume, and prints what happened.
"""

import json
import sys
from typing import Any
from uuid import uuid4

from generated import Client  # type: ignore[import-not-found]  # it is made by the test
from generated.api.job_service import (  # type: ignore[import-not-found]
    create_job,
    get_job,
    list_job_events,
    pause_job,
    resume_job,
)
from generated.models import Job, PauseJobRequest, PauseMode, Status  # type: ignore[import-not-found]


def wait_for(client: Any, name: str, state: str) -> Any:
    """Follows the job's events until it is in a state; a generated client has no streams of its own."""
    with client.get_httpx_client().stream("GET", "/v1/jobs:watch", params={"names": name}, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                job = json.loads(line.removeprefix("data: ")).get("job", {})
                if job.get("state") in (state, "SUCCEEDED", "FAILED", "CANCELLED"):
                    assert job["state"] == state, job
                    return Job.from_dict(job)
    raise AssertionError("the watch ended")


def main(address: str, spec: str) -> None:
    with Client(base_url=f"http://{address}") as client:
        body, request_id = Job.from_dict({"spec": json.loads(spec), "labels": {"by": "openapi"}}), str(uuid4())
        made = create_job.sync(client=client, body=body, request_id=request_id)
        if not isinstance(made, Job):
            sys.exit(f"{made.message}")
        name = made.name.removeprefix("jobs/")
        assert create_job.sync(client=client, body=body, request_id=request_id).name == made.name
        print(f"created {made.name}")
        wait_for(client, made.name, "RUNNING")
        print("trains")
        etag = get_job.sync(name, client=client).etag
        asked = pause_job.sync(name, client=client, body=PauseJobRequest(mode=PauseMode.EPOCH, reason="the tour"))
        assert asked.etag != etag
        paused = wait_for(client, made.name, "PAUSED")
        print(f"paused after epoch {paused.progress.epoch}: {paused.latest_checkpoint}")
        resume_job.sync(name, client=client)
        print(f"ended after epoch {wait_for(client, made.name, 'SUCCEEDED').progress.epoch}")
        print(*(event.type_.value for event in list_job_events.sync(name, client=client).events), sep="\n")
        refused = pause_job.sync(name, client=client)
        assert isinstance(refused, Status)
        print(f"a pause is refused now: {refused.details[0].additional_properties['reason']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
