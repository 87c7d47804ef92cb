"""Silence of the control plane, and sleep of the agent."""

import pytest

from adjourn_worker.contact import DEFAULT_LEASE, Contact

LEASE = 10.0


def contact(**others: float) -> Contact:
    made = Contact(1000.0, patience=3, lease=LEASE)
    made.respond(1000.0, LEASE)
    for name, value in others.items():
        setattr(made, name, value)
    return made


def test_silence_that_the_agent_is_awake_for_is_no_sleep() -> None:
    made = contact()
    assert not any(made.slept(1000.0 + seconds / 4) for seconds in range(1, 200))
    assert made.sleeps == 0


@pytest.mark.parametrize(
    ("seconds", "slept"), [(LEASE - 0.1, False), (LEASE, False), (LEASE + 0.1, True), (100 * LEASE, True)]
)
def test_an_agent_has_slept_if_its_lease_ran_out_meanwhile(seconds: float, slept: bool) -> None:
    made = contact()
    assert made.slept(1000.0 + seconds) is slept
    assert made.asleep_seconds == pytest.approx(seconds if slept else 0)
    assert not made.slept(1000.0 + seconds + 0.1), "once"


def test_a_short_sleep_at_the_end_of_a_long_silence_is_none() -> None:
    made = contact(ran=1030.0)
    assert not made.slept(1030.0 + LEASE / 2 - 0.1)
    assert made.slept(1030.0 + LEASE / 2 - 0.1 + LEASE / 2)


def test_after_so_many_leases_of_silence_it_is_out_of_contact_until_it_hears() -> None:
    made = contact()
    assert not made.is_out(1000.0 + 3 * LEASE)
    assert made.is_out(1000.1 + 3 * LEASE)
    made.respond(1100.0, 20.0)
    assert not made.is_out(1100.0 + 3 * 20.0)
    assert made.is_out(1100.1 + 3 * 20.0)


def test_one_that_has_slept_has_as_long_again_to_be_told() -> None:
    made = contact()
    assert made.slept(1100.0)
    assert not made.is_out(1100.0 + 3 * LEASE)
    assert made.is_out(1100.1 + 3 * LEASE)


def test_the_silence_before_an_agent_started_counts_but_for_a_lease_to_be_heard() -> None:
    short = Contact(1000.0, patience=3, lease=LEASE, heard=985.0)
    assert (short.is_out(985.0 + 3 * LEASE), short.is_out(985.1 + 3 * LEASE)) == (False, True)
    long = Contact(1000.0, patience=3, lease=LEASE, heard=10.0)
    assert (long.is_out(1000.0 + LEASE), long.is_out(1000.1 + LEASE)) == (False, True)
    never = Contact(1000.0, patience=3)
    assert (never.is_out(1000.0 + 3 * DEFAULT_LEASE), never.is_out(1000.1 + 3 * DEFAULT_LEASE)) == (False, True)
