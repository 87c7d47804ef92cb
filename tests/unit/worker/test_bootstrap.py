"""What a training process prints."""

import os
from pathlib import Path

from adjourn_worker.launcher.bootstrap import printing_to


def test_what_finds_no_room_in_the_log_is_lost_and_the_log_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = printing_to(descriptor)
    for line in ("one", "two"):
        stream.write(f"{line}\n")  # raises nothing
    room = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(room, descriptor)
    stream.write("three\n")
    stream.write("four\n")
    os.close(descriptor)
    os.close(room)
    assert log.read_text() == "adjourn: 8 bytes are missing here, as the disk was full\nthree\nfour\n"
