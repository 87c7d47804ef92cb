"""What a sink is sent: the event as JSON, an id that stays, and a signature as Standard Webhooks has it."""

import base64
import json
from datetime import UTC, datetime

import pytest

from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.store.interface import Happened, JobName, JobUid
from adjourn_control_plane.webhooks import message

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def happened() -> Happened:
    event = JobEvent(sequence=7, type=JobEvent.MILESTONE_REACHED, state=Job.RUNNING, details={"percent": "50"})
    event.time.FromDatetime(NOW)
    return Happened(token="1-0", job=JobName("jobs/a"), uid=JobUid("u-1"), labels={"team": "x"}, event=event)


def test_the_body_is_the_event_as_the_contract_has_it_in_json() -> None:
    assert json.loads(message.body(happened())) == {
        "type": "job.milestone_reached",
        "timestamp": "2026-03-01T12:00:00Z",
        "data": {
            "job": "jobs/a",
            "job_uid": "u-1",
            "labels": {"team": "x"},
            "event": {
                "sequence": 7,
                "time": "2026-03-01T12:00:00Z",
                "type": "MILESTONE_REACHED",
                "state": "RUNNING",
                "details": {"percent": "50"},
            },
        },
    }
    assert message.body(happened()) == message.body(happened())
    assert message.identifier(happened()) == "u-1_7"


def test_it_is_signed_as_the_example_of_standard_webhooks() -> None:
    secret = message.parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    then = datetime.fromtimestamp(1614265330, UTC)
    sent = message.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', secret, then)
    assert sent["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert sent["webhook-timestamp"] == "1614265330"
    assert sent["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sent["content-type"] == "application/json"


@pytest.mark.parametrize("text", ["", "abc", "whsec_", "whsec_?", f"whsec_{base64.b64encode(b'x' * 23).decode()}"])
def test_a_secret_that_is_none_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="must be whsec_ and 24 to 64 bytes") as caught:
        message.parse_secret(text)
    assert len(text) < 7 or text not in str(caught.value)
