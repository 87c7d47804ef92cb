"""Three tasks on one trunk, weighted by learned uncertainties; a cosine schedule with warm restarts in each step."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data


def make_data(size=240):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 10, generator=generator)
    mix = torch.randn(10, 5, generator=generator)
    hidden = inputs @ mix
    return data.TensorDataset(inputs, hidden[:, 0].tanh(), hidden[:, 1] > 0, hidden[:, 2:].argmax(1))


class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({"value": nn.Linear(32, 1), "sign": nn.Linear(32, 1), "kind": nn.Linear(32, 3)})

    def forward(self, inputs):
        hidden = self.trunk(inputs)
        return {name: head(hidden) for name, head in self.heads.items()}


def losses(outputs, values, signs, kinds):
    return torch.stack(
        [
            F.mse_loss(outputs["value"][:, 0], values),
            F.binary_cross_entropy_with_logits(outputs["sign"][:, 0], signs.float()),
            F.cross_entropy(outputs["kind"], kinds),
        ]
    )


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(make_data(), batch_size=24, shuffle=True, num_workers=args.workers)
    model = MultiTask()
    log_variances = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters()}, {"params": [log_variances], "lr": 1e-1, "weight_decay": 0.0}], lr=1e-2
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)

    for epoch in range(args.epochs):
        for step, (inputs, *targets) in enumerate(loader):
            each = losses(model(inputs), *targets)
            loss = (each * (-log_variances).exp() + log_variances).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(epoch + step / len(loader))
        print(f"epoch {epoch}: losses {each.tolist()}, variances {log_variances.exp().tolist()}")
