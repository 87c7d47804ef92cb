"""PURE. Pages of lists: how many items go into one, and the tokens that continue a list (AIP-158); thinned series.

A page token is opaque: the cursor of the last item that was shown, with a digest of the query. It continues that query
and no other.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from adjourn import errors
from adjourn.series import thinned

DEFAULT_SIZE: Final = 50
MAX_SIZE: Final = 500
PAGE_BYTES: Final = 3 << 20
"""Bytes of the items in a page. gRPC clients refuse messages of over 4 MiB unless they are told otherwise."""
FIRST_READ: Final = 16
"""Items to read before anything is known of their size."""
DIGEST_BYTES: Final = 12
MAX_DIGITS: Final = 18
"""Of a number that an item of a list can have."""
POINTS: Final = 500
MAX_POINTS: Final = 1000
"""Points of a series in an answer: if none is asked for, and at most."""
FOREIGN: Final = "must be the next_page_token of the page before, with all other fields as they were"

Item = TypeVar("Item", bound=Message)


class ListRequest(Protocol):
    """A request for one page of a list."""

    page_size: int
    page_token: str


def size(request: ListRequest) -> int:
    """Returns how many items were asked for: the default for 0, the ceiling for more than that."""
    return min(request.page_size, MAX_SIZE) if request.page_size > 0 else DEFAULT_SIZE


def violations(request: ListRequest) -> dict[str, str]:
    """Returns what is wrong with the page that was asked for."""
    found = {}
    if request.page_size < 0:
        found["page_size"] = f"must be 0 or more; is {request.page_size}"
    if request.page_token and decoded(request) is None:
        found["page_token"] = FOREIGN
    return found


def cursor(request: ListRequest) -> str:
    """Returns where the page begins, behind the item with this cursor; empty for the first page.

    Raises InvalidRequestError for a token of another query, or for what is no token.
    """
    if found := violations(request):
        raise errors.InvalidRequestError(found)
    return decoded(request) or ""


def position(request: ListRequest) -> int:
    """Returns `cursor` of a list whose items have numbers from 1; 0 for the first page. Raises InvalidRequestError."""
    found = cursor(request)
    if found and not (found.isascii() and found.isdecimal() and len(found) <= MAX_DIGITS):
        raise errors.InvalidRequestError({"page_token": FOREIGN})  # forged: ours have a number
    return int(found or 0)


def token(request: ListRequest, cursor: str) -> str:
    """Returns the token that continues the query of `request` behind the item with this cursor."""
    return base64.urlsafe_b64encode(digest(request) + cursor.encode()).decode().rstrip("=")


def decoded(request: ListRequest) -> str | None:
    """Returns the cursor in the request's token; None if the token is not of this query."""
    try:
        padding = "=" * (-len(request.page_token) % 4)
        data = base64.b64decode(request.page_token + padding, altchars=b"-_", validate=True)
        found = data[DIGEST_BYTES:].decode()
    except ValueError:
        return None
    return found if data[:DIGEST_BYTES] == digest(request) and found else None


def digest(request: ListRequest) -> bytes:
    """Returns what tells the query of a request from others: all of it except the size and the token of the page."""
    assert isinstance(request, Message)
    query = type(request)()
    query.CopyFrom(request)
    query.ClearField("page_size")
    query.ClearField("page_token")
    name = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + query.SerializeToString(deterministic=True)).digest()[:DIGEST_BYTES]


class Page(Generic[Item]):
    """A page that is being filled, up to a number of items and to PAGE_BYTES. It takes one item whatever its size."""

    def __init__(self, size: int) -> None:
        self.items: list[Item] = []
        self._size = size
        self._bytes = 0

    @property
    def wanted(self) -> int:
        """How many items to read next: what is likely to fit, and one that tells whether there are more."""
        left = self._size - len(self.items)
        if not self.items:
            return min(left, FIRST_READ) + 1
        fitting = (PAGE_BYTES - self._bytes) * len(self.items) // max(self._bytes, 1)
        return min(left, max(fitting, 1)) + 1

    def add(self, item: Item) -> bool:
        """Takes an item; False, and nothing is taken, if the page is full."""
        length = item.ByteSize() + 8  # tag and length
        if len(self.items) == self._size or (self.items and self._bytes + length > PAGE_BYTES):
            return False
        self.items.append(item)
        self._bytes += length
        return True


async def filled(
    size: int, read: Callable[[Item | None, int], Awaitable[Sequence[Item]]]
) -> tuple[Sequence[Item], bool]:
    """Returns the items of one page, and whether there are more.

    `read(last, count)` returns up to `count` items behind the item `last` (None: from the beginning), and fewer only at
    the end of the list.
    """
    page: Page[Item] = Page(size)
    while True:
        count = page.wanted
        found = await read(page.items[-1] if page.items else None, count)
        for item in found:
            if not page.add(item):
                return page.items, True
        if len(found) < count:
            return page.items, False


def thin(points: Sequence[Item], wanted: int, at: Callable[[Item], float]) -> list[Item]:
    """Returns the points of a series, thinned to the number that was asked for (0: POINTS), and to PAGE_BYTES.

    `at` says where a point is; they are given in order.
    """
    count = min(wanted or POINTS, MAX_POINTS)
    found = thinned(points, count, at)
    while count > 1 and sum(point.ByteSize() + 8 for point in found) > PAGE_BYTES:
        count //= 2
        found = thinned(points, count, at)
    return found
