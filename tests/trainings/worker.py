"""Has the name of a package that the launcher has imported."""

from adjourn import training


def main(run: training.Run) -> None:
    for _ in run.epochs():
        print("the user's own worker")
