"""Percentile bootstrap intervals that resample prompts.

The responses to a prompt are not independent, and treating them as if they were would make every
interval too short. Two policies that answered the same prompts are compared on the same resamples,
so the intervals of their differences are paired.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from wind.fingerprints import digest

LEVEL = 0.95
# prompts times resamples drawn at once: 32 MiB of indices
BLOCK = 2**22

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
# A value and the ends of its interval, None where there is none.
Estimate = tuple[float, float | None, float | None]


def estimate(values: pl.DataFrame, samples: int, generator: np.random.Generator) -> Estimate:
    """Estimate the mean of `values` and its 95% bootstrap interval.

    Returns the mean and the two ends of the interval. `values` has the columns prompt_id and value;
    the percentile bootstrap draws `samples` resamples of prompts. A resample's mean is the ratio of
    its summed values to its summed counts, so prompts with more rows weigh more, as in the mean
    itself. The interval is widened if need be to hold the mean, which percentiles of a skewed or
    constant sample can miss. Fewer than two prompts have no interval: both ends are None.
    """
    prompts = (
        values.group_by("prompt_id")
        .agg(sum=pl.col("value").sum(), count=pl.len())
        .sort("prompt_id")
    )
    return estimate_ratio(prompts, samples, generator)


def estimate_ratio(prompts: pl.DataFrame, samples: int, generator: np.random.Generator) -> Estimate:
    """Estimate a ratio of sums over prompts and its 95% interval, as `estimate` does.

    `prompts` has the columns sum and count, one row per prompt; no count is 0.
    """
    sums_P, counts_P = prompts["sum"].to_numpy(), prompts["count"].to_numpy()
    mean = float(sums_P.sum() / counts_P.sum())
    if len(prompts) < 2:
        return mean, None, None
    means = np.concatenate(
        [
            sums_P[chosen_B_P].sum(axis=1) / counts_P[chosen_B_P].sum(axis=1)
            for chosen_B_P in resamples(len(prompts), samples, generator)
        ]
    )
    return mean, *interval(means, mean)


def estimate_quantile(
    values: pl.DataFrame, samples: int, generator: np.random.Generator, *, share: float
) -> Estimate:
    """Estimate a quantile of `values` and its 95% interval, as `estimate` does for the mean.

    It is the smallest value that at least `share` of the rows do not exceed. A resample of prompts
    weighs each row by how often its prompt was drawn.
    """
    rows = values.sort("value")
    sorted_R = rows["value"].to_numpy()
    prompt_R = rows["prompt_id"].rank("dense").to_numpy().astype(np.int64) - 1
    quantile = float(sorted_R[_first_reaching(np.ones((1, len(rows))), share)[0]])
    prompts = int(prompt_R.max()) + 1
    if prompts < 2:
        return quantile, None, None
    quantiles = np.concatenate(
        [
            sorted_R[_first_reaching(multiplicities(chosen_B_P)[:, prompt_R], share)]
            for chosen_B_P in resamples(prompts, samples, generator, len(rows))
        ]
    )
    return quantile, *interval(quantiles, quantile)


def resamples(
    prompts: int, samples: int, generator: np.random.Generator, width: int | None = None
) -> Iterator[Integers]:
    """Yield `samples` resamples of `prompts` prompts in blocks, as indices [B, P].

    `width` is how many numbers the caller needs for one resample, by default the prompts.
    """
    block = max(1, BLOCK // (width or prompts))
    for start in range(0, samples, block):
        yield generator.integers(prompts, size=(min(block, samples - start), prompts))


def multiplicities(chosen_B_P: Integers) -> Floats:
    """Count how often each resample has each prompt, [B, P]."""
    resamples_B, prompts = np.arange(len(chosen_B_P)), chosen_B_P.shape[1]
    places = (resamples_B[:, None] * prompts + chosen_B_P).ravel()
    counts = np.bincount(places, minlength=chosen_B_P.size)
    return counts.reshape(chosen_B_P.shape).astype(np.float64)


def interval(values_B: Floats, value: float) -> tuple[float, float]:
    """Return the 95% interval of the resampled `values_B`, widened to hold `value`."""
    low, high = np.quantile(values_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return min(low, value), max(high, value)


def _first_reaching(weights_B_R: Floats, share: float) -> Integers:
    """Return where the summed weights of each row first reach `share` of all of them."""
    summed_B_R = weights_B_R.cumsum(axis=1)
    # rounding of the product must not ask for one more row
    wanted_B = np.ceil(share * summed_B_R[:, -1] - 1e-9)
    places: Integers = (summed_B_R >= wanted_B[:, None]).argmax(axis=1)
    return places


def generator_for(seed: int, iteration: int, metric: str) -> np.random.Generator:
    """Return the random generator of one metric's interval.

    Each metric has its own, so that adding a metric changes no other interval.
    """
    return np.random.default_rng(int(digest([seed, iteration, metric]), 16))
