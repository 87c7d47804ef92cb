"""`python -m adjourn.cli`, where the command `adjourn` is not on the path."""

from adjourn.cli import main

main()
