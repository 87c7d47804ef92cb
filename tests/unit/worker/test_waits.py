"""How long processes have waited for a processor."""

import os
import threading
from pathlib import Path

from adjourn_worker.host.waits import Waits


def thread(proc: Path, pid: int, number: int, text: str) -> None:
    place = proc / str(pid) / "task" / str(number)
    place.mkdir(parents=True, exist_ok=True)
    (place / "schedstat").write_text(text)


def test_the_thread_that_waited_longest_counts_from_when_it_was_seen_first(tmp_path: Path) -> None:
    waits = Waits(tmp_path)
    thread(tmp_path, 7, 7, "100 5000000000 3")
    thread(tmp_path, 7, 8, "100 1000000000 3")
    assert waits.added([7]) == 0
    thread(tmp_path, 7, 7, "200 5100000000 4")
    thread(tmp_path, 7, 8, "100 1500000000 4")
    thread(tmp_path, 7, 9, "100 9000000000 4")
    assert waits.added([7]) == 0.5
    assert waits.added([7]) == 0


def test_what_is_gone_or_not_counted_waits_for_nothing(tmp_path: Path) -> None:
    waits = Waits(tmp_path)
    for number, text in enumerate(("", "0", "nonsense here")):
        thread(tmp_path, 7, number, text)
    assert (waits.added([7, 8]), waits.added([7, 8])) == (0, 0)


def test_the_kernel_counts_processes_that_run() -> None:
    waits = Waits()
    waits.added([os.getpid()])
    assert 0 <= waits.added([os.getpid()]) < 60
    assert (Path("/proc") / str(os.getpid()) / "task" / str(threading.get_native_id())).is_dir()
