"""Whether training hangs: by its own pace, by what it is doing, by the limit of its job."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.pulse import Phase, Pulse
from adjourn_worker.attempt.pace import ENDING_SECONDS, Hang, Pace, Watch

PACE = Pace(factor=10, step_seconds=60, other_seconds=600, grace_seconds=5)
LOOK = 0.5
STEPS = 20
"""In an epoch."""


class Seen:
    """A training as its agent sees it, look by look."""

    def __init__(self, watch: Watch | None = None) -> None:
        self.watch = watch or Watch()
        self.pulse = Pulse()
        self.hangs: list[Hang] = []

    def shows(self, phase: Phase, *, steps: int = 0, epochs: int = 0) -> None:
        """Has training get on; the next look sees it."""
        self.pulse = Pulse(
            beats=self.pulse.beats + 1,
            phase=phase,
            steps=self.pulse.steps + steps,
            epochs=self.pulse.epochs + epochs,
        )

    def lasts(self, seconds: float, *, look: float = LOOK, counted: bool = True) -> "Seen":
        """Looks, every `look` seconds; time that is not counted is time in which training could not run."""
        for _ in range(round(seconds / look)):
            self.watch = self.watch.looked(self.pulse, look if counted else 0.0)
            if hang := self.watch.hang(PACE):
                self.hangs.append(hang)
        return self

    def starts(self, seconds: float = 5, *, look: float = LOOK) -> "Seen":
        self.shows(Phase.STARTING)
        return self.lasts(seconds, look=look)

    def epoch(self, *, step: float = 1, boundary: float = 5, known: bool = True) -> "Seen":
        for number in range(STEPS):
            inside = (Phase.STEPPING if known else Phase.IN_EPOCH) if number < STEPS - 1 else Phase.BOUNDARY
            self.shows(inside, steps=1)
            self.lasts(step if number < STEPS - 1 else boundary)
        self.shows(Phase.BOUNDARY, epochs=1)
        return self.lasts(1)

    def epochs(self, count: int) -> "Seen":
        for number in range(count):
            self.epoch(known=number > 0)
        return self

    def hangs_in(self, phase: Phase, seconds: float, *, steps: int = 1) -> "Seen":
        self.shows(phase, steps=steps)
        return self.lasts(seconds)

    @property
    def noticed(self) -> float | None:
        """After how many silent seconds it was found hanging."""
        return self.hangs[0].silence if self.hangs else None


def trained(epochs: int = 4) -> Seen:
    seen = Seen().starts().epochs(epochs)
    assert not seen.hangs
    return seen


def test_a_step_that_takes_far_longer_than_all_others_hangs() -> None:
    seen = trained().hangs_in(Phase.STEPPING, 100)
    assert seen.noticed == pytest.approx(60, abs=1)
    assert seen.hangs[0].own_pace
    assert "between two steps of an epoch" in str(seen.hangs[0])
    assert "it may take 60 s" in str(seen.hangs[0])


def test_slow_steps_may_take_ten_times_as_long() -> None:
    seen = Seen().starts()
    for number in range(4):
        seen.epoch(step=20, known=number > 0)
    assert seen.hangs_in(Phase.STEPPING, 190).noticed is None
    assert seen.lasts(20).noticed == pytest.approx(200, abs=2)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_the_first_epochs_are_not_judged_by_a_pace_that_is_not_known(epochs: int) -> None:
    seen = trained(epochs)
    assert seen.hangs_in(Phase.STEPPING if epochs else Phase.IN_EPOCH, 590).noticed is None
    assert seen.lasts(30).noticed == pytest.approx(600, abs=2)


def test_an_agent_that_came_amid_an_epoch_learns_first() -> None:
    """Something that happens once an epoch may have happened before it looked."""
    for epochs, noticed in ((0, 600), (1, 600), (2, 60)):
        seen = Seen()
        seen.pulse = Pulse(beats=1000, phase=Phase.STEPPING, steps=90, epochs=4)
        seen.lasts(5)
        for _ in range(epochs):
            seen.epoch()
        assert seen.hangs_in(Phase.STEPPING, 700).noticed == pytest.approx(noticed, abs=2)


@pytest.mark.parametrize("phase", [Phase.BOUNDARY, Phase.SAVING, Phase.IN_EPOCH])
def test_a_validation_that_comes_once_in_many_epochs_is_not_taken_for_a_hang(phase: Phase) -> None:
    seen = trained(epochs=9).hangs_in(phase, 590)
    assert seen.noticed is None
    assert seen.lasts(30).noticed == pytest.approx(600, abs=2)


def test_long_validations_may_become_longer_still() -> None:
    seen = Seen().starts()
    for number in range(3):
        seen.epoch(boundary=100, known=number > 0)
    assert seen.hangs_in(Phase.BOUNDARY, 990).noticed is None
    assert seen.lasts(30).noticed == pytest.approx(1000, abs=2)


def test_what_has_never_made_a_step_is_not_judged() -> None:
    assert Seen().starts(100_000, look=100).noticed is None
    without_steps = Seen().starts()
    for _ in range(5):
        without_steps.shows(Phase.STARTING)
        without_steps.lasts(10)
        without_steps.shows(Phase.BOUNDARY, epochs=1)
    assert without_steps.lasts(100_000, look=100).noticed is None


def test_a_resumed_run_has_to_make_its_first_step() -> None:
    seen = Seen(Watch(makes_steps=True)).starts(590)
    assert seen.noticed is None
    assert seen.lasts(30).noticed == pytest.approx(600, abs=2)
    assert "before its first step" in str(seen.hangs[0])


def test_a_task_is_judged_only_by_a_limit_that_was_given() -> None:
    task = Seen()
    task.shows(Phase.UNKNOWN, steps=3)
    assert task.lasts(100_000, look=100).noticed is None
    limited = Seen(Watch(timeout=30))
    limited.shows(Phase.UNKNOWN)
    assert limited.lasts(10_000).noticed is None, "it may never make a step"
    limited.shows(Phase.UNKNOWN, steps=1)
    assert limited.lasts(40).noticed == pytest.approx(30, abs=1)


def test_a_wait_for_room_is_no_hang() -> None:
    for timeout in (None, 30.0):
        seen = Seen(Watch(timeout=timeout)).starts().epochs(4)
        assert seen.hangs_in(Phase.WAITING, 10_000, steps=0).noticed is None
        seen.shows(Phase.SAVING)
        assert seen.lasts(20).noticed is None


def test_a_process_that_does_not_end_hangs() -> None:
    assert trained().hangs_in(Phase.ENDING, ENDING_SECONDS + 5, steps=0).noticed == pytest.approx(ENDING_SECONDS, abs=1)


@pytest.mark.parametrize("phase", [Phase.STEPPING, Phase.IN_EPOCH, Phase.BOUNDARY, Phase.SAVING])
def test_the_limit_of_a_job_counts_from_step_to_step(phase: Phase) -> None:
    seen = Seen(Watch(timeout=30)).starts(500).epochs(1)
    assert seen.noticed is None
    for _ in range(100):  # batches of a validation that does not end
        seen.shows(phase)
        seen.lasts(LOOK)
    assert seen.noticed == pytest.approx(30, abs=2)
    assert "hang_timeout" in str(seen.hangs[0])


def test_the_limit_of_a_job_is_no_reason_to_give_up_a_start() -> None:
    seen = Seen(Watch(timeout=2)).starts(590)
    assert seen.noticed is None
    assert seen.lasts(30).noticed == pytest.approx(600, abs=2)


def test_time_in_which_training_could_not_run_does_not_count() -> None:
    seen = trained().hangs_in(Phase.STEPPING, 50).lasts(10_000, counted=False)
    assert seen.noticed is None
    assert seen.lasts(20).noticed == pytest.approx(60, abs=2)


def test_a_sign_of_life_ends_it() -> None:
    seen = trained().hangs_in(Phase.STEPPING, 70)
    seen.watch = seen.watch.found_hanging()
    assert not seen.lasts(5).watch.moved
    seen.shows(Phase.STEPPING, steps=1)
    seen.lasts(1)
    assert seen.watch.moved
    assert seen.watch.hang(PACE) is None


def test_training_of_an_older_version_is_not_judged() -> None:
    watch = Watch()
    for _ in range(1000):
        watch = watch.looked(None, 100.0)
    assert watch.hang(PACE) is None


PHASES = st.sampled_from([phase for phase in Phase if phase != Phase.WAITING])


@given(
    st.lists(st.tuples(PHASES, st.integers(0, 29), st.integers(0, 1), st.integers(0, 1)), max_size=60),
    st.booleans(),
)
def test_training_that_shows_life_within_the_least_limit_never_hangs(
    course: Iterable[tuple[Phase, int, int, int]], makes_steps: bool
) -> None:
    seen = Seen(Watch(makes_steps=makes_steps))
    for phase, seconds, steps, epochs in course:
        seen.shows(phase, steps=steps, epochs=epochs)
        seen.lasts(seconds, look=2)
    assert not seen.hangs


@given(st.lists(st.tuples(PHASES, st.integers(0, 500), st.integers(0, 1)), max_size=20), st.floats(1, 60))
def test_whatever_came_before_training_that_makes_steps_and_falls_silent_hangs(
    course: Iterable[tuple[Phase, int, int]], timeout: float
) -> None:
    for watch in (Watch(), Watch(timeout=timeout)):
        seen = Seen(watch)
        for phase, seconds, steps in course:
            seen.shows(phase, steps=steps)
            seen.lasts(seconds, look=20)
        seen.shows(Phase.STEPPING, steps=1)
        seen.lasts(2)
        limit = seen.watch.limit(PACE)
        assert limit is not None
        silent = replace(seen.watch, silence=limit + 1, stepless=limit + 1)
        found = silent.hang(PACE)
        assert found
        assert found.limit <= max(PACE.other_seconds, PACE.factor * 501)
