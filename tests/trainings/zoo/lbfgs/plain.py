"""A small physical law fitted by L-BFGS, which evaluates its closure as often as its line search likes."""

import torch
from torch import nn
from torch.utils import data


def make_data(size=180):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(size, 1, generator=generator) * 4
    heights = torch.exp(-0.5 * times) * torch.cos(3 * times) + 0.02 * torch.randn(size, 1, generator=generator)
    return data.TensorDataset(times, heights)


class Oscillator(nn.Module):
    """A damped oscillation, and a network for what is left."""

    def __init__(self, width=16):
        super().__init__()
        self.damping = nn.Parameter(torch.tensor(1.0))
        self.frequency = nn.Parameter(torch.tensor(2.5))
        self.rest = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, times):
        return torch.exp(-self.damping * times) * torch.cos(self.frequency * times) + 0.1 * self.rest(times)


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(make_data(), batch_size=60, shuffle=True, num_workers=args.workers)
    model = Oscillator()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=2, history_size=5, line_search_fn="strong_wolfe")

    for epoch in range(args.epochs):
        for times, heights in loader:

            def closure(times=times, heights=heights):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(times), heights)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
        print(f"epoch {epoch}: loss {loss.item():.4f}, frequency {model.frequency.item():.3f}")
