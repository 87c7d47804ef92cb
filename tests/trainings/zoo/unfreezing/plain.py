"""Fine-tunes a network from its head down: every second epoch one more block is thawed, at a lower rate."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

RATE, DECAY = 1e-2, 0.5


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 24), nn.BatchNorm1d(24), nn.ReLU()) for width in (8, 24, 24)
        )
        self.head = nn.Linear(24, 3)

    def forward(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return self.head(inputs)


def make_data(size=240):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 8, generator=generator)
    return TensorDataset(inputs, (inputs @ torch.randn(8, 3, generator=generator)).argmax(1))


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    hits = sum((model(inputs).argmax(1) == labels).sum().item() for inputs, labels in loader)
    model.train()
    return hits / len(loader.dataset)


def main(args):
    torch.manual_seed(0)
    train_set, val_set = random_split(make_data(), [200, 40], generator=torch.Generator().manual_seed(0))
    loader = DataLoader(train_set, batch_size=20, shuffle=True, num_workers=args.workers)
    val_loader = DataLoader(val_set, batch_size=40)
    model = Backbone()
    model.blocks.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=RATE)

    for epoch in range(1, args.epochs + 1):
        if epoch % 2 == 0:
            block = model.blocks[-(epoch // 2)].requires_grad_(True)
            optimizer.add_param_group({"params": block.parameters(), "lr": RATE * DECAY ** (epoch // 2)})
        for inputs, labels in loader:
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: {len(optimizer.param_groups)} groups, accuracy {accuracy(model, val_loader):.3f}")
