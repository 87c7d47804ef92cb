"""A page holds what fits; its token continues the query that it came from, and no other."""

from collections.abc import Sequence

import pytest

from adjourn import errors
from adjourn.v1.checkpoint_service_pb2 import ListCheckpointsRequest
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent, ListEpochMetricsRequest, ListJobEventsRequest, ListJobsRequest
from adjourn_control_plane.api import pages


def events(count: int, size: int) -> list[JobEvent]:
    return [JobEvent(sequence=number, message="x" * size) for number in range(1, count + 1)]


async def walked(items: Sequence[JobEvent], size: int) -> list[list[int]]:
    """Returns the sequences of every page, from the first to the last."""
    found: list[list[int]] = []
    more, behind = True, 0
    while more:

        async def read(last: JobEvent | None, count: int, behind: int = behind) -> Sequence[JobEvent]:
            start = last.sequence if last else behind
            return items[start : start + count]

        page, more = await pages.filled(size, read)
        assert sum(item.ByteSize() for item in page[1:]) < pages.PAGE_BYTES
        found.append([item.sequence for item in page])
        behind = page[-1].sequence if page else behind
    return found


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 100, 130])
async def test_pages_of_small_items_are_cut_by_number(count: int) -> None:
    found = await walked(events(count, 10), 50)
    assert [number for page in found for number in page] == list(range(1, count + 1))
    assert [len(page) for page in found[:-1]] == [50] * (len(found) - 1)
    assert len(found) == max(1, -(-count // 50))


@pytest.mark.parametrize("size", [1 << 10, 100 << 10, 600 << 10, pages.PAGE_BYTES // 2, pages.PAGE_BYTES * 2])
async def test_pages_of_large_items_are_cut_by_bytes_and_lose_none(size: int) -> None:
    found = await walked(events(40, size), 500)
    assert [number for page in found for number in page] == list(range(1, 41))
    assert all(page for page in found)


async def test_no_more_is_read_than_is_likely_to_fit() -> None:
    items, asked = events(500, 600 << 10), []

    async def read(last: JobEvent | None, count: int) -> Sequence[JobEvent]:
        asked.append(count)
        start = last.sequence if last else 0
        return items[start : start + count]

    await pages.filled(500, read)
    assert sum(asked) <= 2 * (pages.FIRST_READ + 1)


@pytest.mark.parametrize(("asked", "served"), [(0, 50), (1, 1), (500, 500), (501, 500), (2**31 - 1, 500)])
def test_sizes(asked: int, served: int) -> None:
    assert pages.size(ListJobsRequest(page_size=asked)) == served
    assert list(pages.violations(ListJobsRequest(page_size=-1))) == ["page_size"]


REQUEST = ListJobsRequest(page_size=10, states=[Job.PAUSED], labels={"b": "2", "a": "1"})


def following(request: ListJobsRequest, **changes: object) -> ListJobsRequest:
    """Returns the request for the next page, with changes."""
    made = ListJobsRequest(page_token=pages.token(request, "17"))
    made.MergeFrom(request)
    for field, value in changes.items():
        made.ClearField(field)  # type: ignore[arg-type]
        made.MergeFrom(ListJobsRequest(**{field: value}))  # type: ignore[arg-type]
    return made


def test_a_token_continues_its_query_with_any_size_of_page() -> None:
    assert pages.cursor(following(REQUEST)) == "17"
    assert pages.cursor(following(REQUEST, page_size=3)) == "17"
    assert pages.cursor(ListJobsRequest()) == ""


@pytest.mark.parametrize("change", [{"states": [Job.RUNNING]}, {"states": []}, {"labels": {"a": "1"}}, {"labels": {}}])
def test_a_token_of_another_query_is_refused_with_its_field(change: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        pages.cursor(following(REQUEST, **change))
    assert list(caught.value.violations) == ["page_token"]


def test_a_token_is_of_one_kind_of_list_and_of_one_parent() -> None:
    token = pages.token(ListJobEventsRequest(parent="jobs/j"), "5")
    for request in (
        ListJobEventsRequest(parent="jobs/other", page_token=token),
        ListEpochMetricsRequest(parent="jobs/j", page_token=token),
        ListCheckpointsRequest(parent="jobs/j", page_token=token),
    ):
        assert list(pages.violations(request)) == ["page_token"]
    assert pages.cursor(ListJobEventsRequest(parent="jobs/j", page_token=token)) == "5"


@pytest.mark.parametrize("token", ["17", "x", "-1", "=", "ü", "A" * 100_000, "\0", "AAAA====", "AAAAAAAAAAAAAAAA"])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert list(pages.violations(ListJobsRequest(page_token=token))) == ["page_token"]


@pytest.mark.parametrize("cursor", ["x", "-1", "1_000", "٣", "1" * 100])
def test_a_forged_token_without_a_number_is_refused_with_its_field(cursor: str) -> None:
    made = ListJobsRequest(page_token=pages.token(REQUEST, cursor))
    with pytest.raises(errors.InvalidRequestError) as caught:
        pages.position(made)
    assert list(caught.value.violations) == ["page_token"]


def test_a_token_does_not_show_its_cursor_and_fits_a_url() -> None:
    token = pages.token(REQUEST, "1234567")
    assert "1234567" not in token
    assert token.replace("-", "").replace("_", "").isalnum()


def test_points_are_as_many_as_asked_for_and_fit() -> None:
    points = events(2000, 10)

    def shown(wanted: int, size: int = 10) -> list[JobEvent]:
        return pages.thin(points if size == 10 else events(pages.POINTS, size), wanted, lambda event: event.sequence)

    assert [len(shown(wanted)) for wanted in (0, 1, 70, 5000)] == [pages.POINTS, 1, 70, pages.MAX_POINTS]
    assert shown(1)[-1] == points[-1]
    large = shown(0, 100 << 10)
    assert 1 < len(large) < pages.POINTS
    assert sum(event.ByteSize() for event in large) <= pages.PAGE_BYTES
    assert len(pages.thin(events(3, pages.PAGE_BYTES + 1), 0, lambda event: event.sequence)) == 1
