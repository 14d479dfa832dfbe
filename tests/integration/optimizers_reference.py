"""Slow, obvious LAMB, StableAdamW and AdamW in Python loops over whole float64 tensors, written from the papers."""

import math

import torch


class Slow:
    """One parameter and its two moments; `update` is one step of the named algorithm."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.x = weights.double().clone()
        self.m, self.v, self.t = torch.zeros_like(self.x), torch.zeros_like(self.x), 0

    def adamw(self, g, rate, decay, betas, eps):
        """Loshchilov and Hutter 2019, algorithm 2."""
        r = self._direction(g, betas, eps)
        self.x = self.x - rate * (r + decay * self.x)

    def lamb(self, g, rate, decay, betas, eps):
        """You et al. 2020, algorithm 2, phi the identity; what does not decay takes Adam's step."""
        step = self._direction(g, betas, eps) + decay * self.x
        x_norm, step_norm = self.x.norm().item(), step.norm().item()
        ratio = x_norm / step_norm if decay and x_norm and step_norm else 1.0
        self.x = self.x - rate * ratio * step

    def stable_adamw(self, g, rate, decay, betas, eps):
        """Wortsman et al. 2023, algorithm 2: the moments' betas change with t, so that they need no correction."""
        self.t += 1
        g = g.double()
        b1, b2 = (beta * (1 - beta ** (self.t - 1)) / (1 - beta**self.t) for beta in betas)
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        rms = math.sqrt((g**2 / self.v.clamp_min(eps**2)).mean().item())
        rate = rate / max(1.0, rms)
        self.x = self.x - rate * decay * self.x - rate * self.m / (self.v.sqrt() + eps)

    def _direction(self, g, betas, eps):
        self.t += 1
        (b1, b2), g = betas, g.double()
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        return (self.m / (1 - b1**self.t)) / ((self.v / (1 - b2**self.t)).sqrt() + eps)
