from pathlib import Path

import pytest

from adjourn_worker.host.notify import NotifySocket, notify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notify"


async def test_it_is_heard_once_however_often_it_rang(path: Path) -> None:
    async with NotifySocket(path) as notifications:
        for _ in range(3):
            notify(str(path))
        assert await notifications.wait(5)
        assert not await notifications.wait(0.01)


async def test_one_that_rang_too_often_is_left_alone(path: Path) -> None:
    async with NotifySocket(path) as notifications:
        for _ in range(10_000):  # far more than the socket holds; nobody reads meanwhile
            notify(str(path))
        assert await notifications.wait(5)


async def test_a_bell_that_is_not_there_is_no_error(path: Path) -> None:
    notify(str(path))
    notify("")
    notify("x" * 1000)


async def test_it_takes_the_place_of_one_whose_agent_was_killed_and_leaves_none(path: Path) -> None:
    path.write_bytes(b"")
    async with NotifySocket(path) as notifications:
        assert path.stat().st_mode & 0o777 == 0o600
        notify(str(path))
        assert await notifications.wait(5)
    assert not path.exists()


async def test_a_place_that_cannot_be_bound_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        async with NotifySocket(tmp_path / "none" / "notify"):
            pass
