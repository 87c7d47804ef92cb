"""The sink of webhooks over HTTP."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from urllib3 import PoolManager, Timeout
from urllib3.exceptions import HTTPError

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0
"""A sink should take an event in, answer, and work afterwards."""
REFUSED: Final = frozenset({400, 413, 415, 422})
"""The sink has read the event and will not have it: another try has the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a try."""

    taken: bool = False
    refused: bool = False
    """It would not take this event at any time."""
    problem: str = ""
    """Why not, without anything secret."""


class Sink(Protocol):
    async def post(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends an event once; raises nothing."""
        ...


class HttpSink:
    """A sink at a URL. Requests go one after the other, through a thread of their own; redirects are not followed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.place = urlsplit(url).netloc
        """For people: the rest of a URL may be secret."""
        self._pool = PoolManager(timeout=Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS), retries=False)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="webhooks")

    async def post(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._post, data, headers)

    def _post(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            response = self._pool.request(
                "POST", self._url, body=data, headers=dict(headers), redirect=False, preload_content=False
            )
        except HTTPError as error:  # its text may quote the URL
            return Answer(problem=f"{self.place} gives no answer: {type(error).__name__}")
        response.close()
        if 200 <= response.status < 300:
            return Answer(taken=True)
        return Answer(refused=response.status in REFUSED, problem=f"{self.place} answers with status {response.status}")

    def close(self) -> None:
        """Lets go of connections and thread; a request under way ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()
