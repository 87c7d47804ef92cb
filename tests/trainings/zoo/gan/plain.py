"""A GAN on eight blobs in a ring: two optimizers that take turns, smoothed labels, noise that stays for the samples."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

NOISE = 8
REAL, FAKE = 0.9, 0.1


class Ring(data.Dataset):
    def __init__(self, size=320):
        generator = torch.Generator().manual_seed(0)
        angles = torch.randint(0, 8, (size,), generator=generator) * (2 * math.pi / 8)
        centres = torch.stack([angles.cos(), angles.sin()], 1)
        self.points = centres + 0.05 * torch.randn(size, 2, generator=generator)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index]


class Generator(nn.Sequential):
    def __init__(self, width=32):
        super().__init__(nn.Linear(NOISE, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


class Critic(nn.Sequential):
    def __init__(self, width=32):
        super().__init__(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(width, 1))


def loss_against(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(Ring(), batch_size=32, shuffle=True, num_workers=args.workers)
    generator, critic = Generator(), Critic()
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    c_optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999))
    fixed_noise = torch.randn(64, NOISE)

    for epoch in range(args.epochs):
        generator.train()
        for real in loader:
            fake = generator(torch.randn(len(real), NOISE))
            critic_loss = loss_against(critic(real), REAL) + loss_against(critic(fake.detach()), FAKE)
            c_optimizer.zero_grad()
            critic_loss.backward()
            c_optimizer.step()

            generator_loss = loss_against(critic(fake), REAL)
            g_optimizer.zero_grad()
            generator_loss.backward()
            g_optimizer.step()
        generator.eval()
        with torch.no_grad():
            radius = generator(fixed_noise).norm(dim=1).mean().item()
        print(f"epoch {epoch}: critic {critic_loss.item():.3f}, radius {radius:.3f}")
