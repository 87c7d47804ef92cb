"""A training with epochs so short that whoever asks for a pause meets a boundary now and then.

Arguments: `pace`, seconds that each epoch sleeps; `enough`, the epoch after which it has enough.
"""

import time

from torch import nn

from adjourn import training


def main(run: training.Run) -> None:
    run.track(model=nn.Linear(2, 1))
    for epoch in run.epochs():
        time.sleep(run.args.get("pace", 0))
        run.step()
        if epoch == run.args.get("enough"):
            break
