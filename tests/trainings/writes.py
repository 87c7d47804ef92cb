"""Trainings that write to their output directory."""

from pathlib import Path

import torch
from torch import nn

from adjourn import training


def main(run: training.Run) -> None:
    """Writes a log that it keeps open, pictures in a directory, and its model behind the loop."""
    model = nn.Linear(2, 1)
    run.track(model=model)
    place = run.output_directory
    (place / "plots").mkdir(exist_ok=True)
    log = (place / "log.txt").open(run.args.get("mode", "a"))
    for epoch in run.epochs():
        with torch.no_grad():
            model.weight.mul_(0.5)
        print("epoch", epoch, file=log)  # it is flushed by the snapshot
        (place / "plots" / f"{epoch}.txt").write_text("a picture")
        (place / "newest.txt").write_text(f"epoch {epoch}")
    (place / "model.txt").write_text("a model")
    (place / "link").symlink_to("/etc/passwd")


def steps(run: training.Run) -> None:
    """Appends at each step, and before the loop of an epoch."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader([torch.tensor([float(index)]) for index in range(6)], batch_size=1)  # type: ignore[arg-type]
    with (run.output_directory / "log.txt").open("a") as log:
        for epoch in run.epochs():
            print("epoch", epoch, file=log)
            for batch in loader:
                loss = model(batch).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss=loss)
                print("step", run.steps, file=log)


def stages(run: training.Run) -> None:
    """Appends between stages."""
    model = nn.Linear(1, 1)
    run.track(model=model)
    with (run.output_directory / "log.txt").open("a") as log:
        for stage in (1, 2):
            print("stage", stage, file=log)
            for epoch in run.epochs(2):
                with torch.no_grad():
                    model.weight.mul_(0.5)
                print("epoch", epoch, file=log)


def large(run: training.Run) -> None:
    for _ in run.epochs():
        (run.output_directory / "large.bin").write_bytes(b"0" * 2000)


def of_a_task(run: training.Run) -> None:
    print(Path(run.output_directory))
