"""Settings of gRPC channels on which client and server must agree."""

import json
from collections.abc import Sequence
from typing import Final

DEFAULT_ADDRESS: Final = "127.0.0.1:7400"
ACTOR_KEY: Final = "adjourn-actor"
"""Metadata key of the caller's name. It is recorded, not checked."""

MAX_MESSAGE_BYTES: Final = 16 << 20
"""Largest message either way; a SynchronizeRequest with every assignment of a worker fits many times over."""
BUNDLE_LIMIT_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 1 << 20
MAX_METADATA_BYTES: Final = 32 << 10
"""Error details travel in metadata."""

KEEPALIVE_SECONDS: Final = 10
PING_TIMEOUT_SECONDS: Final = 5

Option = tuple[str, str | int]

COMMON: Sequence[Option] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_SECONDS * 1000),
    # Without this one a stopped peer is noticed after a minute, whatever keepalive_timeout_ms says (grpcio 1.85).
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_SECONDS * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)

SERVER_OPTIONS: Sequence[Option] = (
    *COMMON,
    # Strictly below the client's interval, or it is sent away for "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    ("grpc.so_reuseport", 0),  # a second server on the port must be an error
)

SERVICE_CONFIG = {
    # Of several control planes behind a name, any: the first of them may be stuck.
    "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}],
    # UNAVAILABLE means "not done, or done and remembered under your request_id": safe to ask again.
    "methodConfig": [
        {
            "name": [
                {"service": f"adjourn.v1.{name}"} for name in ("JobService", "CheckpointService", "WorkerService")
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

CLIENT_OPTIONS: Sequence[Option] = (
    *COMMON,
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    # Shorter than a call is repeated for: one that begins when the server is back finds it.
    ("grpc.max_reconnect_backoff_ms", 800),
)
