"""Leaves to the end of the interpreter what most programs do: a thread, a callback, files that are not closed."""

import atexit
import logging
import tempfile
import threading
import time
from pathlib import Path

from adjourn import training
from adjourn.training import interpreter_end

written = Path("written.txt").open("w")  # noqa: SIM115
logging.basicConfig(filename="logged.txt", level=logging.INFO)
temporary = tempfile.TemporaryDirectory()
Path("temporary.txt").write_text(temporary.name)


def main(run: training.Run) -> None:
    written.write("to the last line")
    logging.getLogger().info("logged")
    atexit.register(lambda: Path("called.txt").write_text("by atexit"))
    threading.Thread(target=finish_later).start()
    for _ in run.epochs():
        run.step()
        if run.args.get("fails"):
            raise ValueError("on purpose")


def finish_later() -> None:
    time.sleep(0.3)
    Path("threaded.txt").write_text("by a thread")


def hangs(run: training.Run) -> None:
    """Has a thread that never ends."""
    interpreter_end.END_SECONDS = 0.3
    threading.Thread(target=threading.Event().wait, name="endless").start()
    for _ in run.epochs():
        run.step()
