"""The launcher's process: `python -m adjourn_worker.launcher DATA_DIRECTORY`."""

import sys

from adjourn_worker.launcher.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
