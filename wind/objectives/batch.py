"""The input of an objective: one entry per selected row.

The columns are those of the iteration's datasets, frozen, except for a learned intercept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Metrics = dict[str, torch.Tensor]
# (logps_B, batch) -> means over rows
Objective = Callable[[torch.Tensor, "Batch"], tuple[torch.Tensor, Metrics]]


@dataclass(frozen=True)
class Batch:
    """The selected rows of one or more prompts.

    Every field has shape [B], and the rows of a prompt stand together: they are a group. Rows are
    samples of pi_t, the policy at the start of the iteration or of the refresh. BOND and J-BOND
    also learn from samples of their anchor. With `from_anchor` the anchor is the reference, every
    group has rows of both kinds, and win rate and rank are among rows of the same kind. Without it
    the anchor is pi_t, and each row counts as both.
    """

    logp_policy: torch.Tensor  # log pi_t(y|x), nats
    logp_reference: torch.Tensor  # log pi_ref(y|x), nats
    win_rate: torch.Tensor  # in [0, 1], the estimate of P_t(x, y): the label of the selection
    reward: torch.Tensor  # in the unit of the reward
    rank: torch.Tensor  # 1 is the best; equal rewards rank in the order of their samples
    # N, the number of responses to the prompt that were compared, including unselected ones
    samples: torch.Tensor
    group: torch.Tensor  # integer that identifies the prompt of the row
    intercept: torch.Tensor | None = None  # c(x), if it is learned; carries a gradient
    from_anchor: torch.Tensor | None = None  # 1 for a sample of the anchor, 0 for one of pi_t

    @property
    def logp_anchor(self) -> torch.Tensor:
        """The log-probability of each row under the anchor, in nats, [B]."""
        return self.logp_policy if self.from_anchor is None else self.logp_reference

    @property
    def is_of_anchor(self) -> torch.Tensor:
        """True for each row that is a sample of the anchor, [B]."""
        return (
            torch.ones_like(self.group, dtype=torch.bool)
            if self.from_anchor is None
            else self.from_anchor.bool()
        )

    @property
    def is_of_policy(self) -> torch.Tensor:
        """True for each row that is a sample of pi_t, [B]."""
        return (
            torch.ones_like(self.group, dtype=torch.bool)
            if self.from_anchor is None
            else ~self.from_anchor.bool()
        )


def metrics(logps_B: torch.Tensor, batch: Batch) -> Metrics:
    """Return the metrics that make sense for any objective, by name.

    They are means over the rows of pi_t, in nats, without gradient. `log_ratio_policy` and
    `log_ratio_reference` measure how far the trained policy, whose log-probabilities are `logps_B`
    [B], has moved from the two frozen ones on the sampled responses. `win_margin` is the mean of
    (2 P - 1) log(pi_theta / pi_t): zero at first, positive when winners gain on losers.
    """
    rows = batch.is_of_policy
    moved = (logps_B - batch.logp_policy).detach()[rows]
    return {
        "log_ratio_policy": moved.mean(),
        "log_ratio_reference": (logps_B - batch.logp_reference).detach()[rows].mean(),
        "win_margin": ((2 * batch.win_rate[rows] - 1) * moved).mean(),
    }
