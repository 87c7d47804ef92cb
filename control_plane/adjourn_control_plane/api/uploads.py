"""Receives bundles: bounded memory, hashed while they arrive, verified before they are stored."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Final

from adjourn import bundles, errors
from adjourn.channel import BUNDLE_LIMIT_BYTES, CHUNK_BYTES
from adjourn.objects import ObjectStore
from adjourn_control_plane.store.interface import JobStore

BUDGET_BYTES: Final = 4 * BUNDLE_LIMIT_BYTES
"""Memory for the bundles of all uploads under way in this process."""
SILENCE_SECONDS: Final = 30.0
"""Longest wait for the next chunk: a stalled upload must not keep its memory."""
REMOVAL_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.2
"""How long an upload waits for the end of its bundle's removal, and how often it looks."""
REFUSED_SECONDS: Final = 30.0
"""How long the rest of a refused upload is read."""


class Uploads:
    """Receives bundles. Each is in memory once, and all of them together stay within a budget."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        *,
        budget: int = BUDGET_BYTES,
        silence: float = SILENCE_SECONDS,
        removal: float = REMOVAL_SECONDS,
    ) -> None:
        self._store = store
        self._objects = objects
        self._removal = removal
        self._free = budget
        self._silence = silence

    async def receive(self, chunks: AsyncIterator[bytes]) -> str:
        """Stores a bundle and returns its name, `bundles/{sha256}`.

        Raises InvalidRequestError, TooManyUploadsError, UploadStalledError, BundleBeingRemovedError, and what the store
        and object storage raise.
        """
        try:
            return await self._receive(chunks)
        except (errors.InvalidRequestError, errors.TooManyUploadsError):
            await self._discard(chunks)
            raise

    async def _receive(self, chunks: AsyncIterator[bytes]) -> str:
        reserved = 0
        data, digest = BytesIO(), hashlib.sha256()
        try:
            async for chunk in self._timed(chunks):
                if len(chunk) > CHUNK_BYTES:
                    raise errors.InvalidRequestError({"chunk": f"must have {CHUNK_BYTES} bytes at most"})
                if reserved + len(chunk) > BUNDLE_LIMIT_BYTES:
                    limit = f"a bundle has {BUNDLE_LIMIT_BYTES} bytes at most; keep data out of it"
                    raise errors.InvalidRequestError({"chunk": limit})
                if len(chunk) > self._free:
                    raise errors.TooManyUploadsError("other uploads use all the memory for bundles; try again")
                self._free -= len(chunk)
                reserved += len(chunk)
                data.write(chunk)
                await asyncio.to_thread(digest.update, chunk)
            return await self._put(data.getvalue(), digest.hexdigest())  # getvalue shares the buffer: no copy
        finally:
            self._free += reserved

    async def _discard(self, chunks: AsyncIterator[bytes]) -> None:
        """Reads the rest of a refused upload, as far as a bundle may go, and keeps none of it.

        grpc.aio shows a caller that still writes when the call ends "Internal error from Core" in place of the answer.
        """
        left = BUNDLE_LIMIT_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFUSED_SECONDS):
                while left > 0 and (chunk := await anext(chunks, None)) is not None:
                    left -= len(chunk)

    async def _timed(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yields the chunks; raises UploadStalledError if the next one does not come in time."""
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise errors.UploadStalledError(f"no chunk came for {self._silence:g} s; upload it again") from None
            if chunk is None:
                return
            yield chunk

    async def _put(self, data: bytes, digest: str) -> str:
        try:
            await asyncio.to_thread(bundles.verify, data)
        except bundles.BundleInvalid as error:
            raise errors.InvalidRequestError({"chunk": str(error)}) from None
        bundle = f"bundles/{digest}"
        await self._want(bundle)
        # Also if it is there: what lies there may be damaged, and uploading it again is how that is mended.
        await self._objects.put(bundles.object_key(bundle), data)
        return bundle

    async def _want(self, bundle: str) -> None:
        """Returns once nobody is about to remove the bundle (see `fleet.bundle_collector`)."""
        try:
            async with asyncio.timeout(self._removal):
                while await self._store.want_bundle(bundle) is None:  # noqa: ASYNC110  # no replica tells another
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            why = f"{bundle} is being removed, as no job needs it; upload it again"
            raise errors.BundleBeingRemovedError(why, bundle=bundle) from None
