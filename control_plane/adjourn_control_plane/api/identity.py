"""The name of the caller."""

from typing import Any

import grpc

from adjourn.channel import ACTOR_KEY

MAX_ACTOR = 256


def actor(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the name that the caller gives. It is recorded, not checked."""
    for key, value in context.invocation_metadata() or ():
        if key == ACTOR_KEY and isinstance(value, str) and value:
            return value[:MAX_ACTOR]
    return "anonymous"
