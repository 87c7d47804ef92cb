"""Mixed precision: bfloat16 where autocast thinks it safe, and losses scaled by what the gradients can bear."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data


def make_data(size=200):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 1, 8, 8, generator=generator)
    targets = (images[:, 0, :4].mean((1, 2)) > images[:, 0, 4:].mean((1, 2))).long()
    return data.TensorDataset(images, targets)


class Model(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.GELU())
        self.head = nn.Linear(channels * 16, 2)

    def forward(self, images):
        return self.head(F.dropout(F.avg_pool2d(self.features(images), 2).flatten(1), 0.2, self.training))


def main(run):
    torch.manual_seed(0)
    loader = run.loader(make_data(), batch_size=20, shuffle=True, num_workers=run.args["workers"])
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-2, total_steps=run.total_epochs * len(loader) + 1
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_factor=4.0, growth_interval=7)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)

    for epoch in run.epochs():
        for images, targets in loader:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)
            scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, scale {scaler.get_scale():g}")
