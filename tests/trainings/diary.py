"""A training of an even pace that keeps a diary: what it did and used, by its own clocks.

Arguments: `diary`, the file, a JSON object a line; `step` and `validation`, the seconds that a step and what follows
the last of an epoch take, of which it computes a third, and more where the machine is busy; `worse_in`, the epoch whose
validation is worse than others; `odd_step`, the step that tells a loss which is no number.
"""

import json
import math
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from adjourn import training

BATCHES = 8
"""Steps of an epoch."""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def last(until: float, busy: float) -> None:
    """Computes until the process has used so many seconds of a core, and sleeps until a moment comes."""
    while time.process_time() < busy and time.monotonic() < until:
        pass
    time.sleep(max(until - time.monotonic(), 0))


def main(run: training.Run) -> None:
    diary = Path(run.args["diary"]).open("a", buffering=1)  # noqa: SIM115  # it is open as long as the process lives

    def note(what: str, **more: object) -> None:
        times = {"time": time.time(), "clock": time.monotonic(), "cpu": time.process_time()}
        print(json.dumps({"what": what, "pid": os.getpid(), **times, "resident": resident_bytes(), **more}), file=diary)

    points = torch.rand(BATCHES * 4, 256, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, 256))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    stopping = training.EarlyStopping(patience=100)
    run.track(model=model, optimizer=optimizer, stopping=stopping)
    loader = run.loader(TensorDataset(points), batch_size=4, shuffle=True)
    note("begins")
    for epoch in run.epochs():
        note("epoch begins", epoch=epoch)
        due = time.monotonic()
        for (batch,) in loader:
            due, busy = due + run.args["step"], time.process_time() + run.args["step"] / 3
            loss = functional.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            last(due, busy)
            told = math.nan if run.steps + 1 == run.args["odd_step"] else loss.item()
            run.step(loss=told)
            note("step", epoch=epoch, step=run.steps, loss=told)
        last(due + run.args["validation"], time.process_time() + run.args["validation"] / 3)
        val_loss = 2.0 if epoch == run.args["worse_in"] else 1 / epoch
        run.log(val_loss=val_loss, accuracy=epoch / 100)
        stopping.update(val_loss)
        note("epoch ends", epoch=epoch, val_loss=val_loss, accuracy=epoch / 100)
