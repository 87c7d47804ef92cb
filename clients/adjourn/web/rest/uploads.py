"""`POST /v1/bundles`: a bundle as clients pack it, or one script, of which a bundle is made."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from adjourn import bundles
from adjourn.channel import BUNDLE_LIMIT_BYTES, CHUNK_BYTES
from adjourn.errors import InvalidRequestError
from adjourn.scripts.files import gather
from adjourn.v1 import job_service_pb2
from adjourn.web.rest.errors import BodyTooLargeError, MediaTypeError

METHOD: Final = job_service_pb2.DESCRIPTOR.services_by_name["JobService"].methods_by_name["UploadBundle"]
BYTES: Final = "application/octet-stream"
ARCHIVES: Final = frozenset({"application/gzip", "application/x-gzip", BYTES})
SCRIPTS: Final = frozenset({"text/x-python", "text/x-script.python", "application/x-python-code", "text/plain", BYTES})
ENTRY_POINTS: Final = ("entry_point", "entryPoint")
SCRIPT_LIMIT_BYTES: Final = 1 << 20


def media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def cut(body: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    """Yields a body as messages of UploadBundle; raises BodyTooLargeError."""
    size = 0
    async for piece in body:
        size += len(piece)
        if size > BUNDLE_LIMIT_BYTES:
            raise BodyTooLargeError(f"a bundle has at most {BUNDLE_LIMIT_BYTES} bytes")
        for begin in range(0, len(piece), CHUNK_BYTES):
            yield job_service_pb2.UploadBundleRequest(chunk=piece[begin : begin + CHUNK_BYTES])


def is_script(headers: Mapping[str, str], query: Sequence[tuple[str, str]]) -> bool:
    """Returns whether the body is a script: it has an entry point, or is called one; raises MediaTypeError."""
    kind = media_type(headers)
    if kind not in ARCHIVES | SCRIPTS:
        raise MediaTypeError(f"the body must be application/gzip, a bundle, or text/x-python, a script; it is {kind!r}")
    return kind not in ARCHIVES or any(name in ENTRY_POINTS for name, _ in query)


def entry_point(query: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Returns module and function that a script is uploaded for; raises InvalidRequestError."""
    found = [value for name, value in query if name in ENTRY_POINTS]
    if len(found) != 1 or not (named := re.fullmatch(r"(\w+):(\w+)", found[0])):
        raise InvalidRequestError({"entry_point": "must be module:function, train:main for a script train.py"})
    return named[1], named[2]


def bundled(source: bytes, module: str, function: str) -> bytes:
    """Returns a bundle of one script; raises InvalidRequestError if no worker could run it."""
    with tempfile.TemporaryDirectory(prefix="adjourn-script-") as folder:
        script = Path(folder, f"{module}.py")
        try:
            script.write_bytes(source)
            return bundles.packed(gather(script, function).files)
        except bundles.BundleInvalid as error:
            raise InvalidRequestError({"entry_point": error.reason}) from None
        except OSError as error:
            raise InvalidRequestError({"entry_point": f"{module}.py cannot be kept: {error.strerror}"}) from None


async def of_script(source: bytes, query: Sequence[tuple[str, str]]) -> AsyncIterator[bytes]:
    """Yields the bundle of a script."""
    module, function = entry_point(query)
    yield await asyncio.to_thread(bundled, source, module, function)
