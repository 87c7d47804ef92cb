"""Errors as `google.rpc.Status` in JSON, with the status of HTTP that its code stands for."""

import math
from collections.abc import Mapping
from typing import Final

from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2
from starlette.responses import Response

from adjourn.errors import AdjournError

HTTP_STATUS: Final[Mapping[int, int]] = {
    code_pb2.OK: 200,
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
}
"""What google.rpc.Code says that a gateway answers."""


class HttpError(AdjournError):
    """A request that the gateway itself refuses; `http_status` and `headers` are those of its answer."""

    code = code_pb2.INVALID_ARGUMENT
    http_status = 400

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class NoSuchPathError(HttpError):
    """No call has this path."""

    code = code_pb2.NOT_FOUND
    reason = "PATH_UNKNOWN"
    http_status = 404


class MethodRefusedError(HttpError):
    """The path is known, and not with this method of HTTP."""

    code = code_pb2.UNIMPLEMENTED
    reason = "METHOD_NOT_ALLOWED"
    http_status = 405


class BodyTooLargeError(HttpError):
    """The body of the request is longer than is accepted."""

    reason = "BODY_TOO_LARGE"
    http_status = 413


class MediaTypeError(HttpError):
    """The body of the request is of a type that is not read here."""

    reason = "MEDIA_TYPE_UNKNOWN"
    http_status = 415


class ForeignRequestError(HttpError):
    """The request comes from a page of another site, or names a host that is not this one."""

    code = code_pb2.PERMISSION_DENIED
    reason = "FOREIGN_REQUEST"
    http_status = 403


class TooManyStreamsError(HttpError):
    """As many streams are open as the gateway has room for."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_STREAMS"
    http_status = 429


def status_json(status: status_pb2.Status) -> str:
    """Returns a status as JSON; details of types that are not known here are left out: JSON cannot show them."""
    known = status_pb2.Status(code=status.code, message=status.message)
    for detail in status.details:
        try:
            json_format.MessageToJson(detail)
        except (TypeError, ValueError):
            continue
        known.details.append(detail)
    return json_format.MessageToJson(known, indent=None, ensure_ascii=False)


def http_status(error: AdjournError) -> int:
    return error.http_status if isinstance(error, HttpError) else HTTP_STATUS.get(error.code, 500)


def response(error: AdjournError) -> Response:
    """Returns the answer that an error becomes; `Retry-After` where repeating the request can succeed."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if error.retry_delay is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_delay.total_seconds())))
    return Response(
        status_json(error.to_status()), status_code=http_status(error), headers=headers, media_type="application/json"
    )
