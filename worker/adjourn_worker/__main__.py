"""`python -m adjourn_worker`: says in a line what is not installed, or works."""

import os
import sys

from adjourn import extras


def main() -> int:
    """Returns the exit status."""
    if why := extras.missing("python -m adjourn_worker"):
        sys.stderr.write(f"{why}\n")
        return 1
    from adjourn_worker import process

    return process.main()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # not held up by a thread that still waits for object storage: what matters is journaled
