"""PURE. An event as a request to a sink, signed as https://www.standardwebhooks.com says.

The id is the same on each try, so that the sink can tell a repeat. The time is that of the try.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from google.protobuf.json_format import MessageToDict

from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.store.interface import Happened

SECRET_PREFIX: Final = "whsec_"


def identifier(happened: Happened) -> str:
    """Returns what tells an event from every other, of all jobs that there ever were."""
    return f"{happened.uid}_{happened.event.sequence}"


def body(happened: Happened) -> bytes:
    """Returns the event as JSON: the same bytes on each try."""
    event = happened.event
    told = {
        "type": f"job.{JobEvent.Type.Name(event.type).lower()}",
        "timestamp": event.time.ToJsonString(),
        "data": {
            "job": happened.job,
            "job_uid": happened.uid,
            "labels": dict(happened.labels),
            "event": MessageToDict(event, preserving_proto_field_name=True),
        },
    }
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def headers(identity: str, data: bytes, secret: bytes, now: datetime) -> Mapping[str, str]:
    """Returns the headers of a try. `secret`: the key itself."""
    time = str(int(now.timestamp()))
    signed = hmac.new(secret, f"{identity}.{time}.".encode() + data, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "user-agent": "adjourn",
        "webhook-id": identity,
        "webhook-timestamp": time,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def parse_secret(text: str) -> bytes:
    """Returns the key of a secret, `whsec_` and base64; raises ValueError, whose text has nothing of it."""
    problem = "must be whsec_ and 24 to 64 bytes in base64, as of: openssl rand -base64 32"
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(problem)
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        raise ValueError(problem) from None
    if not 24 <= len(key) <= 64:
        raise ValueError(problem)
    return key
