"""Quantities derived from dataset rows, and measures of how they move.

Metrics, data checks, drift warnings and `wind diff` all take their formulas from here, so no two of
them can disagree about a number.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]

# The sampler stopped at max_new_tokens, before a stop token.
IS_TRUNCATED: Final = pl.col("finish_reason") == "length"
RESPONSE_TOKENS: Final = pl.col("response_token_ids").list.len()
IS_EMPTY: Final = pl.col("response").str.strip_chars() == ""
# Share of a response's comparisons with its siblings that are ties, in [0, 1].
TIE_SHARE: Final = pl.col("ties") / (pl.col("wins") + pl.col("ties") + pl.col("losses"))
# log pi(y) - log pi_ref(y), in nats; its mean over samples of pi estimates KL(pi || pi_ref).
LOG_RATIO: Final = pl.col("logp_policy") - pl.col("logp_reference")
# The trainer's log-probability of a response minus the sampler's, in nats per token. Both are of the
# whole distribution at temperature 1, whatever the response was sampled at.
LOGP_GAP: Final = (pl.col("logp_policy") - pl.col("logp_sampler")) / pl.col("response_tokens")
# Rollouts also hold responses of the anchor, which say nothing about the policy.
OF_POLICY: Final = pl.col("drawn_from") == "policy"


def is_duplicate(*group: str) -> pl.Expr:
    """True for a response whose text an earlier row has.

    Only rows of the same group are compared.
    """
    return ~pl.struct(*group, "response").is_first_distinct()


def tie_share_of_rewards(*group: str) -> pl.Expr:
    """Share of a response's siblings that have exactly its reward.

    Siblings are the other rows of its group. NaN for a response without siblings.
    """
    return (pl.len().over(*group, "reward") - 1) / (pl.len().over(*group) - 1)


def floats(values: pl.Series) -> Floats:
    """Return `values` as 64-bit floats without nulls."""
    return values.drop_nulls().cast(pl.Float64).to_numpy()


def mean_difference(before: Floats, after: Floats) -> float:
    """Difference of the means, `after` minus `before`."""
    return float(after.mean() - before.mean())


def effect_size(before: Floats, after: Floats) -> float:
    """Difference of the means in pooled standard deviations (Cohen's d).

    The variance is pooled over n1 + n2 - 2 degrees of freedom, where n1 and n2 are the numbers of
    values: each dataset counts by its rows, and the estimate is unbiased if both have the same
    variance. sqrt((v1 + v2) / 2) gives a small dataset as much weight as a large one.

    Returns 0 if nothing moved, and plus or minus infinity if two different constants are compared.
    """
    difference = mean_difference(before, after)
    freedom = len(before) + len(after) - 2
    squares = ((before - before.mean()) ** 2).sum() + ((after - after.mean()) ** 2).sum()
    deviation = float(np.sqrt(squares / freedom)) if freedom > 0 else 0.0
    if deviation == 0:
        return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))
    return difference / deviation


def ks_distance(before: Floats, after: Floats) -> float:
    """Two-sample Kolmogorov-Smirnov statistic.

    It is the largest gap between the two cumulative distribution functions, in [0, 1].
    """
    from scipy import stats  # most of a second to import

    return float(stats.ks_2samp(before, after, method="asymp").statistic)
