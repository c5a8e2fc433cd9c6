"""What an objective sees of a batch: the frozen columns of the iteration's datasets, one entry per row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Metrics = dict[str, torch.Tensor]
Objective = Callable[[torch.Tensor, "Batch"], tuple[torch.Tensor, Metrics]]  # (logps_B, batch) -> means over rows


@dataclass(frozen=True)
class Batch:
    """The selected rows of one or more prompts, each prompt's together; every field has shape [B]."""

    logp_policy: torch.Tensor  # nats, log pi_t(y|x)
    logp_reference: torch.Tensor  # nats, log pi_ref(y|x)
    win_rate: torch.Tensor  # [0, 1], the estimate of P_t(x, y): the label of the selection
    reward: torch.Tensor
    rank: torch.Tensor  # 1 is best; equal rewards in the order of their samples
    samples: torch.Tensor  # N, how many responses of the prompt were compared; a selection may have left some out
    group: torch.Tensor  # integer that names the prompt of the row
    intercept: torch.Tensor | None = None  # c(x), where it is learned; carries a gradient


def metrics(logps_B: torch.Tensor, batch: Batch) -> Metrics:
    """What is worth watching under any objective: means over the rows, in nats, without gradient.

    `log_ratio_policy` and `log_ratio_reference` are how far the trained policy has moved from the frozen ones on the sampled
    responses; `win_margin` is the mean of (2 P - 1) log(pi_theta / pi_t): zero at first, positive when winners gain on losers.
    """
    moved_B = (logps_B - batch.logp_policy).detach()
    return {
        "log_ratio_policy": moved_B.mean(),
        "log_ratio_reference": (logps_B - batch.logp_reference).detach().mean(),
        "win_margin": ((2 * batch.win_rate - 1) * moved_B).mean(),
    }
