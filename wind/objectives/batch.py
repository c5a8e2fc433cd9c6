"""What an objective sees of a batch: the frozen columns of the iteration's datasets, one entry per row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
Objective = Callable[[torch.Tensor, "Batch"], Loss]  # (logps_B, batch) -> scalar loss, scalar metrics: means over rows


@dataclass(frozen=True)
class Batch:
    """The rows of one or more whole prompt groups; every field has shape [B]."""

    logp_policy: torch.Tensor  # nats, log pi_t(y|x)
    logp_reference: torch.Tensor  # nats, log pi_ref(y|x)
    win_rate: torch.Tensor  # [0, 1], the estimate of P_t(x, y)
    reward: torch.Tensor
    rank: torch.Tensor  # 1 is best
    group: torch.Tensor  # integer that names the prompt of the row
