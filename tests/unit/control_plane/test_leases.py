"""Which workers were silent for a lease, on a clock that the test moves."""

from datetime import timedelta

from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet.leases import Leases
from adjourn_control_plane.store.interface import Session

LEASE = 15.0


def session(name: str = "workers/a", *, heartbeat: int = 1, lost: bool = False) -> Session:
    return Session(
        worker=Worker(name=name),
        session="s",
        stream="t",
        connected=True,
        lost=lost,
        heartbeat=heartbeat,
        report_time_ns=0,
    )


def silent(leases: Leases, now: float, *sessions: Session) -> list[str]:
    return [each.worker.name for each in leases.expired(sessions, asked=now, answered=now)]


def counting() -> Leases:
    """Leases that have been counted for a while when the test's workers come."""
    leases = Leases(timedelta(seconds=LEASE))
    leases.awake(999)
    assert silent(leases, 999) == []
    return leases


def watched(leases: Leases, until: float, *sessions: Session, since: float = 1000.0) -> list[str]:
    """Counts every second; returns who was silent at the end."""
    found: list[str] = []
    now = since
    while now <= until:
        leases.awake(now)
        found = silent(leases, now, *sessions)
        now += 1
    return found


def test_silence_of_a_lease_is_a_loss() -> None:
    leases = counting()
    assert watched(leases, 1014, session()) == []
    assert silent(leases, 1015, session()) == ["workers/a"]


def test_each_beat_starts_the_lease_anew() -> None:
    leases = counting()
    watched(leases, 1010, session(heartbeat=1))
    assert watched(leases, 1025, session(heartbeat=2), since=1011) == []
    assert silent(leases, 1026, session(heartbeat=2)) == ["workers/a"]


def test_who_is_lost_already_is_not_lost_again() -> None:
    leases = counting()
    assert watched(leases, 1030, session(lost=True)) == []


def test_a_control_plane_that_starts_gives_everybody_time_to_come_back_and_then_a_lease() -> None:
    leases = Leases(timedelta(seconds=LEASE))
    assert silent(leases, 1_000_000, session()) == []
    leases = Leases(timedelta(seconds=LEASE))
    assert watched(leases, 1029, session()) == []
    assert silent(leases, 1030, session()) == ["workers/a"]


def test_who_has_come_back_after_an_outage_has_a_lease_from_then() -> None:
    leases = Leases(timedelta(seconds=LEASE))
    watched(leases, 1012, session())
    assert watched(leases, 1027, session(heartbeat=2), since=1013) == []
    assert silent(leases, 1028, session(heartbeat=2)) == ["workers/a"]


def test_who_comes_for_the_first_time_while_leases_are_counted_has_a_lease() -> None:
    leases = Leases(timedelta(seconds=LEASE))
    watched(leases, 1005, session())
    assert watched(leases, 1020, session(), session("workers/b"), since=1006) == []
    assert silent(leases, 1021, session(), session("workers/b")) == ["workers/b"]


def test_an_outage_of_the_store_is_nobodys_silence() -> None:
    leases = counting()
    watched(leases, 1014, session())
    leases.forget()
    assert watched(leases, 1044, session(), since=1015) == []
    assert silent(leases, 1045, session()) == ["workers/a"]


def test_outages_one_after_the_other_are_nobodys_silence() -> None:
    leases = Leases(timedelta(seconds=LEASE))
    for began in range(1000, 1200, 20):
        assert watched(leases, began + 19, session(), since=began) == []
        leases.forget()


def test_a_control_plane_that_was_stopped_itself_starts_counting_anew() -> None:
    leases = counting()
    watched(leases, 1005, session())
    leases.awake(1100)
    assert silent(leases, 1100, session()) == []
    assert watched(leases, 1129, session(), since=1101) == []
    assert silent(leases, 1130, session()) == ["workers/a"]


def test_workers_are_counted_one_by_one_and_forgotten_when_gone() -> None:
    leases = counting()
    watched(leases, 1010, session("workers/a"))
    assert watched(leases, 1015, session("workers/a"), session("workers/b"), since=1011) == ["workers/a"]
    silent(leases, 1016)
    assert silent(leases, 1017, session("workers/a")) == [], "it came back: a new count"


def test_a_round_that_takes_long_is_not_taken_for_an_absence_of_ours() -> None:
    """Only the process's own pulse tells whether it ran (C9)."""
    leases = counting()
    leases.awake(1000)
    assert silent(leases, 1000, session()) == []
    for second in range(1001, 1020):  # the round goes on; the process runs
        leases.awake(second)
    assert silent(leases, 1020, session()) == ["workers/a"]


def test_a_store_that_answers_late_is_nobodys_silence() -> None:
    leases = counting()
    watched(leases, 1010, session())
    leases.awake(1016)
    assert leases.expired([session()], asked=1011, answered=1016) == []
    assert watched(leases, 1045, session(), since=1017) == []
    assert silent(leases, 1046, session()) == ["workers/a"]


def test_silence_is_counted_from_the_answer_to_the_question() -> None:
    leases = counting()
    assert leases.expired([session()], asked=1000, answered=1002) == []
    assert leases.expired([session()], asked=1016, answered=1020) == [], "the answer may be of 1002"
    assert len(leases.expired([session()], asked=1017, answered=1017)) == 1
