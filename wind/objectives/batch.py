"""What an objective sees of a batch: the frozen columns of the iteration's datasets, one entry per
row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Metrics = dict[str, torch.Tensor]
# (logps_B, batch) -> means over rows
Objective = Callable[[torch.Tensor, "Batch"], tuple[torch.Tensor, Metrics]]


@dataclass(frozen=True)
class Batch:
    """The selected rows of one or more prompts, each prompt's together; every field has shape [B].

    Rows are samples of pi_t, the policy that the iteration, or the refresh, started from. BOND and
    J-BOND also learn from samples of their anchor. Where `from_anchor` is given, the anchor is the
    reference, every group has rows of both kinds, and win rate and rank are among rows of the same
    kind. Where it is not, the anchor is pi_t, and all rows are both.
    """

    logp_policy: torch.Tensor  # nats, log pi_t(y|x)
    logp_reference: torch.Tensor  # nats, log pi_ref(y|x)
    win_rate: torch.Tensor  # [0, 1], the estimate of P_t(x, y): the label of the selection
    reward: torch.Tensor
    rank: torch.Tensor  # 1 is best; equal rewards in the order of their samples
    # N, how many responses of the prompt were compared; a selection may have left some out
    samples: torch.Tensor
    group: torch.Tensor  # integer that names the prompt of the row
    intercept: torch.Tensor | None = None  # c(x), where it is learned; carries a gradient
    from_anchor: torch.Tensor | None = None  # 1 for a sample of the anchor, 0 for one of pi_t

    @property
    def logp_anchor(self) -> torch.Tensor:
        """The log-probabilities under the anchor, [B]."""
        return self.logp_policy if self.from_anchor is None else self.logp_reference

    @property
    def is_of_anchor(self) -> torch.Tensor:
        """Whether each row is a sample of the anchor, [B]."""
        return (
            torch.ones_like(self.group, dtype=torch.bool)
            if self.from_anchor is None
            else self.from_anchor.bool()
        )

    @property
    def is_of_policy(self) -> torch.Tensor:
        """Whether each row is a sample of pi_t, [B]."""
        return (
            torch.ones_like(self.group, dtype=torch.bool)
            if self.from_anchor is None
            else ~self.from_anchor.bool()
        )


def metrics(logps_B: torch.Tensor, batch: Batch) -> Metrics:
    """What is worth watching under any objective: means over the rows of pi_t, in nats, without
    gradient.

    `log_ratio_policy` and `log_ratio_reference` are how far the trained policy has moved from the
    frozen ones on the sampled responses; `win_margin` is the mean of (2 P - 1) log(pi_theta /
    pi_t): zero at first, positive when winners gain on losers.
    """
    rows = batch.is_of_policy
    moved = (logps_B - batch.logp_policy).detach()[rows]
    return {
        "log_ratio_policy": moved.mean(),
        "log_ratio_reference": (logps_B - batch.logp_reference).detach()[rows].mean(),
        "win_margin": ((2 * batch.win_rate[rows] - 1) * moved).mean(),
    }
