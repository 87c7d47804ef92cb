"""Deep Q-learning on a corridor: replay memory, target network, exploration that fades."""

import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LENGTH, LIMIT = 5, 40
GAMMA, BATCH_SIZE, SYNC = 0.95, 32, 25
EPISODES = 8  # in an epoch


class Corridor:
    """The reward is at the right end; the wind blows to the left."""

    def __init__(self, rng):
        self.rng = rng

    def reset(self):
        self.place, self.time = int(self.rng.integers(0, LENGTH // 2)), 0
        return self.observation()

    def step(self, action):
        self.time += 1
        self.place += (1 if action else -1) if self.rng.random() > 0.1 else -1
        self.place = max(self.place, 0)
        won = self.place >= LENGTH
        return self.observation(), float(won), won or self.time == LIMIT

    def observation(self):
        return np.array([self.place / LENGTH, self.time / LIMIT], dtype=np.float32)


class QNetwork(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, observations):
        return self.layers(observations)


def td_loss(network, target, batch):
    states, actions, rewards, following, done = (torch.as_tensor(np.array(part)) for part in zip(*batch, strict=True))
    values = network(states).gather(1, actions[:, None])[:, 0]
    with torch.no_grad():
        best = target(following).max(1).values
    return F.smooth_l1_loss(values, rewards.float() + GAMMA * best * ~done)


def main(run):
    torch.manual_seed(0)
    random.seed(0)
    rng = np.random.default_rng(0)
    env = Corridor(rng)
    network, target = QNetwork(), QNetwork()
    target.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    memory = deque(maxlen=300)
    run.track(network=network, target=target, optimizer=optimizer, memory=memory, rng=rng)
    run.state.explore = 1.0

    for _ in run.epochs():
        total = 0.0
        for _ in range(EPISODES):
            state, done = env.reset(), False
            while not done:
                if rng.random() < run.state.explore:
                    action = int(rng.integers(0, 2))
                else:
                    action = int(network(torch.from_numpy(state)).argmax())
                following, reward, done = env.step(action)
                memory.append((state, action, reward, following, done))
                state, total = following, total + reward
                if len(memory) < BATCH_SIZE:
                    continue
                loss = td_loss(network, target, random.sample(memory, BATCH_SIZE))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss)
                if run.steps % SYNC == 0:
                    target.load_state_dict(network.state_dict())
        run.state.explore = max(0.05, 0.7 * run.state.explore)
        print("return", total / EPISODES, "explores", run.state.explore)
