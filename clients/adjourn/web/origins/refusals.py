"""Answers of the origins' interfaces when something is refused: JSON with `detail`, as FastAPI gives it."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.rpc import code_pb2
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from adjourn.errors import AdjournError, DeadlineError, InvalidRequestError, PreconditionError, StaleEtagError

T = TypeVar("T")
TRIES = 5
"""How often a decision is taken anew because the job changed meanwhile."""


class Unprocessable(Exception):
    """Something about a request cannot be accepted; `problems` are FastAPI's."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__("; ".join(str(problem["msg"]) for problem in problems))
        self.problems = problems


def refused(detail: str) -> HTTPException:
    return HTTPException(400, detail)


def problems(error: ValidationError, *where: str) -> list[dict[str, Any]]:
    return [{"loc": [*where, *each["loc"]], "msg": each["msg"], "type": each["type"]} for each in error.errors()]


async def body(request: Request, kind: TypeAdapter[T]) -> T:
    """Returns the JSON body of a request; raises Unprocessable."""
    try:
        return kind.validate_json(await request.body() or b"null")
    except ValidationError as error:
        raise Unprocessable(problems(error, "body")) from None


def parameter(request: Request, name: str, kind: TypeAdapter[T], default: T) -> T:
    """Returns a parameter of the query; raises Unprocessable."""
    if name not in request.query_params:
        return default
    return valid(request.query_params[name], kind, "query", name)


def valid(text: str, kind: TypeAdapter[T], *where: str) -> T:
    try:
        return kind.validate_python(text)
    except ValidationError as error:
        raise Unprocessable(problems(error, *where)) from None


async def decided(decide: Callable[[], Awaitable[T]]) -> T:
    """Decides, and does so anew when the job turns out to have changed before the decision took effect."""
    for _ in range(TRIES - 1):
        try:
            return await decide()
        except StaleEtagError:
            continue
    return await decide()


async def unprocessable(_: Request, error: Exception) -> Response:
    assert isinstance(error, Unprocessable)
    return JSONResponse({"detail": error.problems}, status_code=422)


async def http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def adjourn_error(_: Request, error: Exception) -> Response:
    """Answers what the control plane refuses and the interface has no sentence for."""
    assert isinstance(error, AdjournError)
    if isinstance(error, InvalidRequestError):
        found = [
            {"loc": ["body", *field.split(".")], "msg": why, "type": "value_error"}
            for field, why in error.violations.items()
        ]
        return JSONResponse({"detail": found or error.message}, status_code=422)
    if error.code == code_pb2.NOT_FOUND:
        status = 404
    elif isinstance(error, PreconditionError):
        status = 400
    elif error.code == code_pb2.ABORTED:
        status = 409
    elif error.code == code_pb2.UNAVAILABLE:
        status = 503
    elif isinstance(error, DeadlineError):
        status = 504
    else:
        status = 500
    return JSONResponse({"detail": error.message}, status_code=status)


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    Unprocessable: unprocessable,
    HTTPException: http_error,
    AdjournError: adjourn_error,
}
