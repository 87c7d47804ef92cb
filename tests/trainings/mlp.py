"""A user's training with dropout, momentum, a schedule, augmentation and early stopping; goes as far as a test lets it.

Arguments: `gate`, the directory of a `tests.harness.jobs.Gate`; `fail_in`, an epoch in which it fails, once; `hang_in`,
an epoch in which it hangs amid its steps, once, as `hang_by` says; `hoard_in`, an epoch in which it takes a gigabyte of
memory, once; `overlap`, whether another process may train the same job at the same time.
"""

import fcntl
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from adjourn import training


class Points(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Points of a plane and the quarter each is in, moved a little each time they are asked for."""

    def __init__(self, count: int) -> None:
        self.points = torch.rand(count, 2, generator=torch.Generator().manual_seed(1)) - 0.5

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        point = self.points[index]
        return point + 0.05 * torch.randn(2), 2 * (point[0] > 0).long() + (point[1] > 0).long()


class Gate:
    """The training's side of a gate."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def wait(self, epoch: int) -> None:
        """Says that this process is in `epoch`, and returns when that epoch may end."""
        said = self.directory / f"{os.getpid()}.said"
        said.write_text(f"{os.getpid()} {Path.cwd()}")
        said.replace(self.directory / f"in-{epoch}")
        while int((self.directory / "limit").read_text()) < epoch:
            time.sleep(0.005)


def sleep() -> None:
    time.sleep(1e6)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_once(gate: Gate, how: str) -> None:
    if not (gate.directory / "hung").exists():
        (gate.directory / "hung").touch()
        {"sleep": sleep, "stop": stop}[how]()


def hoard_once(gate: Gate) -> None:
    if not (gate.directory / "hoarded").exists():
        (gate.directory / "hoarded").touch()
        hoard = [b"." * (1 << 20) for _ in range(1 << 10)]
        raise MemoryError(f"nothing has kept it from taking {len(hoard)} MiB")


def task(run: training.Run) -> None:
    """Has no epochs."""
    Gate(run.args["gate"]).wait(0)
    run.step()


def main(run: training.Run) -> None:
    gate = Gate(run.args["gate"])
    alone = (gate.directory / "alone").open("w")
    if not run.args.get("overlap"):
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if another process trains this job
    model = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.total_epochs)
    stopping = training.EarlyStopping(patience=100)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, stopping=stopping)
    train, validation = run.loader(Points(96), batch_size=16, shuffle=True), run.loader(Points(48), batch_size=48)
    gate.wait(0)
    for epoch in run.epochs():
        model.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
            if epoch == run.args.get("hang_in"):
                hang_once(gate, run.args["hang_by"])
        if epoch == run.args.get("hoard_in"):
            hoard_once(gate)
        gate.wait(epoch)
        if epoch == run.args.get("fail_in") and not (gate.directory / "failed").exists():
            (gate.directory / "failed").touch()
            raise ConnectionError("the data went away")
        scheduler.step()
        model.eval()
        with torch.no_grad():
            val_loss = sum(functional.cross_entropy(model(inputs), targets).item() for inputs, targets in validation)
        run.log(val_loss=val_loss)
        stopping.update(val_loss)
        print(f"epoch {epoch}: val_loss {val_loss}")
