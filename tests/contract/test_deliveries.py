"""Who delivers events to the webhook, and how far they are."""

import asyncio
from datetime import timedelta

from adjourn_control_plane.store.interface import JobStore

MINUTE, MOMENT = timedelta(minutes=1), timedelta(milliseconds=50)


async def test_one_holder_at_a_time_and_the_next_goes_on_where_it_was(store: JobStore) -> None:
    assert await store.hold_delivery("a", MINUTE) == ""
    assert await store.hold_delivery("b", MINUTE) is None
    assert await store.note_delivered("a", "5-0")
    assert not await store.note_delivered("b", "7-0")
    assert await store.hold_delivery("a", MINUTE) == "5-0"
    await store.release_delivery("b")
    assert await store.hold_delivery("b", MINUTE) is None
    await store.release_delivery("a")
    assert await store.hold_delivery("b", MINUTE) == "5-0"
    assert not await store.note_delivered("a", "1-0"), "it has given the lease back"
    assert await store.hold_delivery("b", MINUTE) == "5-0"


async def test_a_lease_ends_by_itself_and_is_kept_by_who_holds_it_again(store: JobStore) -> None:
    await store.hold_delivery("a", MOMENT)
    async with asyncio.timeout(60):
        while await store.hold_delivery("b", MINUTE) is None:  # noqa: ASYNC110  # the store tells nobody
            await asyncio.sleep(0.01)
    assert not await store.note_delivered("a", "5-0")
    assert await store.hold_delivery("a", MINUTE) is None
