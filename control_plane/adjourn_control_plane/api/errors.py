"""Turns exceptions of handlers into answers: typed errors with details, without internals."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias
from uuid import uuid4

import grpc
import structlog

from adjourn import errors

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context = grpc.aio.ServicerContext[Any, Any]
STATUS_KEY = "grpc-status-details-bin"


class Errors(grpc.aio.ServerInterceptor):
    """Answers errors with google.rpc.Status. Other exceptions are logged under an id, which the caller gets."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        # A wrapper must have the method's own streaming kind, or a silent caller could hold it open.
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(answering(handler.unary_unary, method), **serializers)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(answering(handler.stream_unary, method), **serializers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(wrapper(handler.unary_stream, method), **serializers)
        return grpc.stream_stream_rpc_method_handler(wrapper(handler.stream_stream, method), **serializers)


def wrapper(call: Any, method: str) -> Any:
    """Wraps a streaming handler in its own style: grpc's health service is a coroutine, others are generators."""
    return answering(call, method) if inspect.iscoroutinefunction(call) else streaming(call, method)


def answering(call: Any, method: str) -> Any:
    async def wrapped(request: Any, context: Context) -> Any:
        with structlog.contextvars.bound_contextvars(method=method):
            try:
                return await call(request, context)
            except Exception as error:  # noqa: BLE001  # the last resort of every call
                await abort(error, context)

    return wrapped


def streaming(call: Any, method: str) -> Any:
    async def wrapped(request: Any, context: Context) -> AsyncIterator[Any]:
        with structlog.contextvars.bound_contextvars(method=method):
            try:
                async with aclosing(call(request, context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:  # noqa: BLE001  # the last resort of every call
                await abort(error, context)

    return wrapped


async def abort(error: Exception, context: Context) -> NoReturn:
    """Ends the call with the part of an error that a caller may see."""
    if isinstance(error, grpc.aio.AbortError):  # a handler of grpc's own (health, reflection) has answered
        raise error
    if not isinstance(error, errors.AdjournError):
        error_id = uuid4().hex
        log.error("call_failed", error_id=error_id, exc_info=error)
        error = errors.InternalError(
            f"a fault of the control plane; its log tells more under error_id {error_id}", error_id=error_id
        )
    status = error.to_status()
    await context.abort(CODES[status.code], status.message, ((STATUS_KEY, status.SerializeToString()),))


CODES = {code.value[0]: code for code in grpc.StatusCode}
