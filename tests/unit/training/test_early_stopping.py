import math

import pytest

from adjourn.training import EarlyStopping


def test_stops_when_patience_is_used_up() -> None:
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(value) for value in (3, 2, 2, 1, 1, 1)] == [False, False, False, False, False, True]
    assert (stopping.best, stopping.best_epoch, stopping.stale) == (1, 4, 2)


def test_small_improvements_do_not_count() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert [stopping.update(value) for value in (1.0, 0.95, 0.9)] == [False, False, True]
    assert stopping.best == 1.0


def test_more_may_be_better() -> None:
    stopping = EarlyStopping(patience=1, mode="max", metric="accuracy")
    assert [stopping.update(value) for value in (0.5, 0.6, 0.6)] == [False, False, True]
    assert (stopping.best, stopping.best_epoch, stopping.metric) == (0.6, 2, "accuracy")


def test_nan_is_no_improvement() -> None:
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(value) for value in (math.nan, 1.0, math.nan, math.nan)] == [False, False, False, True]
    assert stopping.best == 1.0


def test_epochs_may_be_counted_elsewhere() -> None:
    stopping = EarlyStopping(patience=5)
    stopping.follow(lambda: 12)
    stopping.update(1)
    assert stopping.best_epoch == 12


def test_state_is_all_it_remembers() -> None:
    one, two = EarlyStopping(patience=3), EarlyStopping(patience=3)
    for value in (2, 1, 1):
        one.update(value)
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == one.state_dict()
    assert [two.update(value) for value in (1, 1)] == [one.update(value) for value in (1, 1)] == [False, True]


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1}, {"min_delta": math.nan}, {"mode": "median"}])
def test_nonsense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(**{"patience": 1, **options})  # type: ignore[arg-type]
