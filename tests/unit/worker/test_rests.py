"""How long work for storage rests."""

import pytest

from adjourn_worker.storage.rests import MOST, SHARE, Rests


def test_work_that_nobody_waits_for_does_not_rest() -> None:
    rests = Rests()
    for _ in range(100):
        rests.saw(0.1, 0.001, working=True)
    assert rests.due == 0


def test_work_that_training_waits_for_rests_until_that_is_a_small_share_of_the_time() -> None:
    rests = Rests()
    rests.saw(1.0, 0.06, working=True)
    assert rests.due == pytest.approx(0.06 / SHARE - 1)
    rests.saw(0.4, 0.0, working=False)
    assert rests.due == pytest.approx(0.06 / SHARE - 1.4)
    rests.saw(0.6, 0.0, working=False)
    assert rests.due == 0


def test_what_training_waits_anyhow_is_not_the_works_fault() -> None:
    rests = Rests()
    rests.saw(1.0, 0.5, working=True)
    assert rests.due > 0
    rests.saw(0.1, 0.05, working=False)
    assert rests.due == 0


def test_work_is_never_held_up_for_ever() -> None:
    rests, worked, rested = Rests(), 0.0, 0.0
    for _ in range(1000):
        rests.saw(0.1, 0.1, working=True)
        worked += 0.1
        while (due := rests.due) > 1e-9:
            rests.saw(due, 0.0, working=False)
            rested += due
    assert rested == pytest.approx(MOST * worked, rel=0.01)


def test_other_load_that_has_gone_is_forgotten() -> None:
    rests = Rests()
    for _ in range(30):
        rests.saw(1.0, 0.9, working=False)
    for _ in range(200):
        rests.saw(0.1, 0.05, working=True)
        rests.saw(0.5, 0.0, working=False)
    rests.saw(1.0, 0.5, working=True)
    assert rests.due > 0
