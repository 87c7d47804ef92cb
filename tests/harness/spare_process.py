"""A fork that waits to become the second process of a drill: torch, which that would import for seconds, is loaded."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from adjourn.training import drill, replay


class SpareProcess:
    """Made before user code is loaded, so it has nothing of it. Ends with the process that made it."""

    def __init__(self) -> None:
        self._anew = drill.launched
        orders, self._orders = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(orders)
            return
        os.close(self._orders)
        with os.fdopen(orders) as file:
            order = file.readline()
        if order:
            become_second(**json.loads(order))
        os._exit(0)

    def launched(self, directory: Path, environment: Mapping[str, str]) -> "SpareProcess":
        """Stands for `drill.launched`, once."""
        drill.launched = self._anew
        os.setpgid(self.pid, self.pid)
        with os.fdopen(self._orders, "w") as file:
            file.write(json.dumps({"directory": str(directory), "environment": dict(environment)}) + "\n")
        return self

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def become_second(directory: str, environment: Mapping[str, str]) -> None:
    log = os.open(Path(directory) / drill.LOG, os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(Path(directory) / drill.WORK)
    sys.argv = ["replay", directory]
    replay.main()
