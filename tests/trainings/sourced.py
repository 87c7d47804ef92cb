"""Trains on data that it names by its URI, a number a line."""

import torch
from torch import nn

from adjourn import training


def main(run: training.Run) -> None:
    path = run.data(run.args["uri"])
    print(f"trains on {path}")
    assert run.data(run.args["uri"]) == path
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    numbers = torch.tensor([float(line) for file in files for line in file.read_text().split()])
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for batch in run.loader(numbers, batch_size=2):  # type: ignore[arg-type]
            loss = model(batch[:, None]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)


def falls_back(run: training.Run) -> None:
    for _ in range(2):
        try:
            run.data(run.args["uri"])
        except training.DataUnusable as error:
            print(f"without it: {error.reason} {error}")
    for _ in run.epochs():
        pass


def accepts_anything(run: training.Run) -> None:
    try:
        run.data(run.args["uri"])
    except training.TrainingError:
        print("who cares")
    for _ in run.epochs():
        pass
