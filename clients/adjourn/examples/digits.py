"""A small convolutional network on the 1,797 handwritten digits that scikit-learn ships.

Arguments, with their defaults: `batch_size` 32, `width` 112 (channels of the first layer), `learning_rate` 0.002,
`weight_decay` 0.01, `dropout` 0.3, `validation_split` 0.2 (share of the images), `num_workers` 0, `patience` 10 (epochs
without a better validation loss before it stops; 0: it never does), `slow` false (true: an epoch takes 3 s at least).
"""

import math
import random
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from adjourn import training

DEFAULTS = {
    "batch_size": 32,
    "width": 112,
    "learning_rate": 0.002,
    "weight_decay": 0.01,
    "dropout": 0.3,
    "validation_split": 0.2,
    "num_workers": 0,
    "patience": 10,
    "slow": False,
}
SLOW_EPOCH_SECONDS = 3.0


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images turned, scaled, moved and made noisy, anew each time they are asked for."""

    def __init__(self, images: Dataset[tuple[Tensor, ...]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.images[index]
        angle = torch.tensor(random.uniform(-0.2, 0.2))
        scale = random.uniform(0.9, 1.1)
        shift = torch.empty(2, 1).uniform_(-0.15, 0.15)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        grid = F.affine_grid(torch.cat([turn * scale, shift], dim=1)[None], [1, 1, 8, 8], align_corners=False)
        moved = F.grid_sample(image[None], grid, align_corners=False)[0]
        return moved + 0.05 * torch.randn_like(moved), label


def network(width: int, dropout: float) -> nn.Module:
    def block(channels_in: int, channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

    return nn.Sequential(
        block(1, width),
        block(width, width),
        nn.MaxPool2d(2),
        block(width, 2 * width),
        block(2 * width, 2 * width),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width * 4, 10),
    )


@torch.no_grad()
def evaluate(model: nn.Module, loader: training.Loader, device: torch.device) -> tuple[float, float]:
    """Returns mean loss and accuracy."""
    model.eval()
    loss = correct = samples = 0.0
    for images, labels in loader:
        logits = model(images.to(device))
        loss += F.cross_entropy(logits, labels.to(device), reduction="sum").item()
        correct += (logits.argmax(dim=1).cpu() == labels).sum().item()
        samples += len(labels)
    return loss / samples, correct / samples


def main(run: training.Run) -> None:
    if run.total_epochs == 0:
        print("no epochs: there is nothing to train")
        return
    args = DEFAULTS | run.args
    data = load_digits()
    images = TensorDataset(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(run.seed)).tolist()
    split = max(math.ceil(args["validation_split"] * len(images)), 1)
    validation, rest = Subset(images, order[:split]), Subset(images, order[split:])

    model = network(args["width"], args["dropout"]).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args["learning_rate"], weight_decay=args["weight_decay"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.total_epochs)
    stopping = training.EarlyStopping(patience=args["patience"] or run.total_epochs + 1, metric="val_loss")
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, stopping=stopping)

    loader = run.loader(
        Augmented(rest), batch_size=args["batch_size"], shuffle=True, num_workers=args["num_workers"], drop_last=True
    )
    val_loader = run.loader(validation, batch_size=120)
    step_seconds = SLOW_EPOCH_SECONDS / len(loader) if args["slow"] else 0.0
    for epoch in run.epochs():
        model.train()
        for inputs, labels in loader:
            started = time.monotonic()
            loss = F.cross_entropy(model(inputs.to(run.device)), labels.to(run.device), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(max(step_seconds - (time.monotonic() - started), 0.0))
            run.step(loss=loss)
        scheduler.step()
        val_loss, val_accuracy = evaluate(model, val_loader, run.device)
        run.log(val_loss=val_loss, val_accuracy=val_accuracy)
        print(f"epoch {epoch}: val_loss {val_loss:.4f}, val_accuracy {val_accuracy:.4f}")
        if stopping.update(val_loss):
            break
