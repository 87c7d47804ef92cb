"""`python -m adjourn.web`: says in a line what is not installed, or serves."""

import sys

from adjourn import extras


def main() -> int:
    """Returns the exit status."""
    if why := extras.missing("python -m adjourn.web"):
        sys.stderr.write(f"{why}\n")
        return 1
    from adjourn.web import process

    return process.main()


if __name__ == "__main__":
    sys.exit(main())
