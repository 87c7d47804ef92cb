"""Gradients of four batches make a step, clipped, after a warm-up; what an epoch leaves over goes into the next."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

ACCUMULATED = 4
WARMUP = 5


class Sequences(data.Dataset):
    """Sums of sequences, some steps of which are blanked out each time anew."""

    def __init__(self, size=234):
        self.inputs = torch.randn(size, 12, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        inputs = self.inputs[index]
        return inputs * (torch.rand(12) > 0.1), inputs.cumsum(0)[-1]


def rate(step):
    return min(1.0, (step + 1) / WARMUP) * 0.97**step


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(Sequences(), batch_size=9, shuffle=True, num_workers=args.workers)
    model = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    for epoch in range(args.epochs):
        for number, (inputs, targets) in enumerate(loader, 1):
            loss = F.mse_loss(model(inputs)[:, 0], targets)
            (loss / ACCUMULATED).backward()
            if number % ACCUMULATED == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 2.0)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, rate {scheduler.get_last_lr()[0]:.4f}")
