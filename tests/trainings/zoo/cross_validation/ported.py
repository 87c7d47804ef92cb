"""Cross validation: each fold trains a new model on the others, with an optimizer and a schedule of its own."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

FOLDS, EPOCHS = 2, 2


def make_data(size=160):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 6, generator=generator)
    return data.TensorDataset(inputs, inputs.square().sum(1, keepdim=True).sqrt())


def folds(dataset):
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1)).chunk(FOLDS)
    for held_out in range(FOLDS):
        rest = torch.cat([part for number, part in enumerate(order) if number != held_out])
        yield data.Subset(dataset, rest.tolist()), data.Subset(dataset, order[held_out].tolist())


def make_model():
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 1))


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    losses = [F.l1_loss(model(inputs), targets).item() for inputs, targets in loader]
    return sum(losses) / len(losses)


def main(run):
    torch.manual_seed(0)
    scores = []
    run.track(scores=scores)
    for train_set, val_set in folds(make_data()):
        loader = run.loader(train_set, batch_size=20, shuffle=True, num_workers=run.args["workers"])
        val_loader = data.DataLoader(val_set, batch_size=30)
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler)
        for _ in run.epochs(EPOCHS):
            model.train()
            for inputs, targets in loader:
                loss = F.mse_loss(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss)
            scheduler.step()
        scores.append(evaluate(model, val_loader))
        print(f"fold {len(scores)}: {scores[-1]:.4f}")
    print(f"mean {sum(scores) / len(scores):.4f}")
