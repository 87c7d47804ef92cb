"""A controller goes on after a round that failed."""

from structlog.testing import capture_logs

from adjourn_control_plane.fleet import rounds


async def test_a_fault_in_one_round_is_told_and_the_next_round_comes() -> None:
    async def broken() -> None:
        raise RuntimeError("broken")

    with capture_logs() as logs:
        await rounds.attempt("scheduler", broken)
    assert [(entry["event"], entry["controller"]) for entry in logs] == [("controller_failed", "scheduler")]
