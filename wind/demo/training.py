"""Seeded training of the demo's two small models.

One thread, one random stream and a fixed order of batches make the same seed write the same bytes.
The matrices inside the transformer's layers are trained by Muon (Jordan et al., 2024), which learns
to add in half the steps of AdamW; embeddings, norms and the head are trained by AdamW. PyTorch's
own Muon orthogonalizes in bfloat16, which is slow on many CPUs: here it is float32.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Use one thread and a separate random stream within the block.

    Both are restored afterwards.
    """
    threads = torch.get_num_threads()
    # the order of a sum depends on the number of threads
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train(
    model: Any, loss_at: Callable[[int], torch.Tensor], *, steps: int, lr: float
) -> list[float]:
    """Train on `loss_at(step)`, and return the loss of every step.

    The learning rate has 10% warm-up and then follows a cosine down to a tenth of `lr`.
    """
    inner = {
        name: weight
        for name, weight in model.named_parameters()
        if ".layers." in name and weight.ndim == 2
    }
    outer = [weight for name, weight in model.named_parameters() if name not in inner]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(inner.values(), lr=10 * lr),
        torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, steps))
        for each in optimizers
    ]
    model.train()
    losses = []
    for step in range(steps):
        loss = loss_at(step)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates.

    Every direction of a weight matrix moves equally far.
    """

    def __init__(
        self, weights: Iterable[torch.Tensor], *, lr: float, momentum: float = 0.9
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight by its orthogonalized Nesterov momentum.

        Matrices of the same shape are processed together.
        """
        for group in self.param_groups:
            shapes = defaultdict(list)
            for weight in group["params"]:
                shapes[weight.shape].append(weight)
            for shape, weights in shapes.items():
                updates = []
                for weight in weights:
                    momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    momentum.lerp_(weight.grad, 1 - group["momentum"])
                    updates.append(weight.grad.lerp(momentum, group["momentum"]))
                scale = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for weight, update in zip(
                    weights, orthogonalized(torch.stack(updates)), strict=True
                ):
                    weight.sub_(scale * update)


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices [..., rows, columns] with all singular values near 1.

    Takes five Newton-Schulz steps (quintic of Jordan et al.).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    y: torch.Tensor = x.mT if tall else x
    return y


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
