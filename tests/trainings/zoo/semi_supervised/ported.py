"""FixMatch: labels of a few samples, and of the many without one what the model is sure of."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

THRESHOLD, WEIGHT = 0.7, 0.5


class Points(data.Dataset):
    """Four clouds in a plane."""

    def __init__(self, size, seed, views=1):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 4, (size,), generator=generator)
        centers = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        self.points = centers[self.labels] + 0.4 * torch.randn(size, 2, generator=generator)
        self.views = views

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        noisy = [self.points[index] + 0.1 * strength * torch.randn(2) for strength in range(1, self.views + 1)]
        return *noisy, self.labels[index]


def main(run):
    torch.manual_seed(0)
    labelled = run.loader(Points(48, seed=1), batch_size=8, shuffle=True, num_workers=run.args["workers"])
    unlabelled = run.loader(Points(220, seed=2, views=2), batch_size=24, shuffle=True, num_workers=run.args["workers"])
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    unlabelled_batches = iter(unlabelled)

    for epoch in run.epochs():
        for inputs, labels in labelled:
            try:
                weak, strong, _ = next(unlabelled_batches)
            except StopIteration:
                unlabelled_batches = iter(unlabelled)
                weak, strong, _ = next(unlabelled_batches)
            with torch.no_grad():
                sure, guessed = model(weak).softmax(1).max(1)
            loss = F.cross_entropy(model(inputs), labels)
            matched = F.cross_entropy(model(strong), guessed, reduction="none")
            loss = loss + WEIGHT * (matched * (sure > THRESHOLD)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}, sure of {(sure > THRESHOLD).float().mean().item():.0%}")
