"""Stops when validation gets no better, and goes back to the best weights; the rate falls on a plateau."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

PATIENCE = 2


def make_data(size=160):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 6, generator=generator)
    targets = inputs[:, 0] - inputs[:, 1] * inputs[:, 2] + torch.randn(size, generator=generator)
    return data.random_split(data.TensorDataset(inputs, targets), [120, size - 120], generator=generator)


@torch.no_grad()
def validate(model, loader):
    model.eval()
    losses = [F.mse_loss(model(inputs)[:, 0], targets).item() for inputs, targets in loader]
    model.train()
    return sum(losses) / len(losses)


def main(run):
    torch.manual_seed(0)
    train_set, val_set = make_data()
    loader = run.loader(train_set, batch_size=12, shuffle=True, num_workers=run.args["workers"])
    val_loader = data.DataLoader(val_set, batch_size=20)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=0)
    best = {"loss": float("inf"), "epoch": 0, "weights": copy.deepcopy(model.state_dict())}
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, best=best)

    for epoch in run.epochs():
        for inputs, targets in loader:
            loss = F.mse_loss(model(inputs)[:, 0], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        val_loss = validate(model, val_loader)
        scheduler.step(val_loss)
        run.log(val_loss=val_loss)
        print(f"epoch {epoch}: validation {val_loss:.3f}, rate {optimizer.param_groups[0]['lr']:.4f}")
        if val_loss < best["loss"]:
            best.update(loss=val_loss, epoch=epoch, weights=copy.deepcopy(model.state_dict()))
        elif epoch - best["epoch"] >= PATIENCE:
            break
    model.load_state_dict(best["weights"])
