"""Trainings that take an unusual, but good, course."""

import os
import resource
import shutil
import threading
import time
from pathlib import Path

import torch
from torch import nn

from adjourn import training


def stops_early(run: training.Run) -> None:
    """Stops in the epoch that its arguments say."""
    for epoch in run.epochs():
        run.step(loss=epoch)
        run.log(val_loss=1 / epoch)
        if epoch == run.args["stop"]:
            break
    run.log(test_loss=0.25)


def changes_its_end(run: training.Run) -> None:
    """Changes behind its epochs what is saved at the end; leaves them in epoch `stop`, if it has one."""
    model = nn.Linear(2, 1)
    stopping = training.EarlyStopping(patience=9)
    run.track(model=model, stopping=stopping)
    for epoch in run.epochs():
        run.step(loss=torch.rand(()))
        stopping.update(1 / epoch)
        if epoch == run.args.get("stop"):
            break
    with torch.no_grad():
        model.weight.mul_(0.5)
    run.log(test_loss=torch.rand(()))
    print("the end")


def catches_everything(run: training.Run) -> None:
    try:
        for _ in run.epochs():
            run.step()
    except BaseException as error:  # noqa: BLE001
        print("caught", type(error).__name__)


def without_steps(run: training.Run) -> None:
    for epoch in run.epochs():
        run.log(number=epoch)


def task(run: training.Run) -> None:
    """Has no epochs: it makes data."""
    for _ in range(3):
        run.step()
    run.log(rows=100)


def shows_arguments(run: training.Run) -> None:
    print(run.args, run.seed, run.device, run.total_epochs)
    for _ in run.epochs():
        print(torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.rand(()).item())


def frees_slots(run: training.Run) -> None:
    """Does what the agent does: gives each slot back, once its snapshot is durable."""
    for _ in run.epochs():
        run.step()
        for mark in Path("../snapshots").glob("*/in-use"):
            mark.unlink()


def accumulates(run: training.Run) -> None:
    """Takes an optimizer step every second batch, of which an epoch has three; thaws a layer on the way."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(optimizer=optimizer)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    count = torch.zeros((), dtype=torch.int64)
    counter = nn.Module()
    counter.register_buffer("count", count)
    run.track(model=model, scheduler=scheduler, counter=counter)
    loader = run.loader([torch.full((2,), float(index)) for index in range(3)], shuffle=True)  # type: ignore[arg-type]
    for epoch in run.epochs():
        if epoch == 2:
            model.requires_grad_()
        for batch in loader:
            loss = model(batch).square().mean() / 2
            loss.backward()
            count += 1
            if count % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
                run.step(loss=loss)
        scheduler.step()


def outlives_its_launcher(run: training.Run) -> None:
    launcher = os.getppid()
    deadline = time.monotonic() + 60
    for _ in run.epochs():
        run.step()
        while os.getppid() == launcher and time.monotonic() < deadline:
            time.sleep(0.01)


def holds(run: training.Run) -> None:
    """Has a state of `megabytes`, which differs after each epoch."""
    model = nn.Linear(1, run.args.get("megabytes", 1) << 18, bias=False)
    run.track(model=model)
    for epoch in run.epochs():
        run.step(loss=epoch)
        with torch.no_grad():
            model.weight.fill_(epoch)


def lacks_room(run: training.Run) -> None:
    """May write no file over 256 KiB until epoch `room`, or until file `room` is there if it has none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    model = nn.Linear(1, 1 << 18, bias=False)
    run.track(model=model)
    for epoch in run.epochs():
        run.step(loss=epoch)
        if epoch == run.args.get("room"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if "room" not in run.args:
        threading.Thread(target=make_room, args=(soft, hard), daemon=True).start()


def make_room(soft: int, hard: int) -> None:
    while not Path("room").exists():
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def loses_its_slots(run: training.Run) -> None:
    """Does what someone does who cleans up shared memory: removes the slots after each epoch."""
    model = nn.Linear(1, 8, bias=False)
    run.track(model=model)
    for epoch in run.epochs():
        run.step()
        with torch.no_grad():
            model.weight.fill_(epoch)
        shutil.rmtree("../snapshots", ignore_errors=True)


def waits(run: training.Run) -> None:
    """Stands still in each epoch, before or after its step as the arguments say, until the file `gate` is there."""
    model = nn.Linear(1000, 500)
    optimizer = torch.optim.Adam(model.parameters())
    run.track(model=model, optimizer=optimizer)

    def wait() -> None:
        while not Path(run.args["gate"]).exists():
            time.sleep(0.01)

    for _ in run.epochs():
        if run.args["early"]:
            wait()
        optimizer.zero_grad()
        model(torch.ones(1, 1000)).sum().backward()
        optimizer.step()
        run.step()
        wait()
