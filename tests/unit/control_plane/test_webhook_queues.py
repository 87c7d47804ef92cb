"""Which event is next, whatever the sink does: each job's in order, and nothing is called delivered that is not."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.store.interface import Happened, JobName, JobUid
from adjourn_control_plane.webhooks import queues
from adjourn_control_plane.webhooks.queues import Queues

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def happened(token: int, job: int) -> Happened:
    return Happened(
        token=str(token), job=JobName(f"jobs/{job}"), uid=JobUid(f"u-{job}"), labels={}, event=JobEvent(sequence=token)
    )


@example(jobs=[0, 0, 1], answers=["refused"] * 6)  # what is new waits too while the sink is away
@given(
    jobs=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    answers=st.lists(st.sampled_from(["taken", "failed", "refused"]), max_size=60),
)
def test_jobs_are_in_order_and_the_place_is_behind_nothing_that_waits(jobs: list[int], answers: list[str]) -> None:
    waiting, now, settled = Queues("0"), NOW, []
    for token, job in enumerate(jobs, 1):
        waiting.add(happened(token, job))
    answers += ["taken"] * len(jobs)
    while (event := waiting.next(now)) is not None or waiting.wait(now, 1e9) < 1e9:
        if event is None:
            now += timedelta(seconds=waiting.wait(now, 1e9))
            continue
        answer = answers.pop(0) if answers else "taken"
        if answer == "taken":
            waiting.took(event)
        left_out = answer != "taken" and waiting.failed(event, now, refused=answer == "refused", jitter=1.0)
        if answer == "taken" or left_out:
            settled.append(event)
        open_tokens = {str(token) for token in range(1, len(jobs) + 1)} - {each.token for each in settled}
        first = min((int(token) for token in open_tokens), default=len(jobs) + 1)
        assert waiting.delivered == str(first - 1)
    assert len(settled) == len(jobs)
    for job in set(jobs):
        mine = [int(each.token) for each in settled if each.uid == f"u-{job}"]
        assert mine == sorted(mine)


def test_each_job_has_its_turn() -> None:
    waiting = Queues("0")
    for token, job in enumerate([1, 1, 1, 2], 1):
        waiting.add(happened(token, job))
    taken = []
    while event := waiting.next(NOW):
        waiting.took(event)
        taken.append(int(event.token))
    assert taken == [1, 4, 2, 3]


def test_so_much_is_read_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "WINDOW", 3)
    waiting, wanted = Queues("0"), []
    wanted.append(waiting.wants_more)
    waiting.add(happened(1, 1))
    wanted.append(waiting.wants_more)
    waiting.failed(happened(1, 1), NOW, refused=False, jitter=1.0)
    wanted.append(waiting.wants_more)
    for token in (2, 3):
        waiting.add(happened(token, 1))
    wanted.append(waiting.wants_more)
    assert wanted == [True, False, True, False], "one waits; others may be behind it; no room is left"
    assert waiting.read == "3"


def test_a_place_that_is_kept_no_more_is_given_up() -> None:
    waiting = Queues("5")
    waiting.skip("90")
    assert (waiting.read, waiting.delivered) == ("90", "90")
    waiting.add(happened(91, 1))
    waiting.skip("99")
    assert (waiting.read, waiting.delivered) == ("99", "90")
