"""The formulas of the metrics: the values, one row per prompt or response, whose mean a metric is.

distinct_n is the mean over prompts of the share of distinct n-grams of words, separated by white
space, among all n-grams in the prompt's responses (Li et al., arXiv 1510.03055); a response of
fewer than n words counts as one n-gram, itself. distinct_responses is the number of different texts
among a prompt's samples. entropy is the mean of -log pi(y) over samples y of pi, in nats; where
`temperature`, `top_p` or `top_k` narrow the sampler it is a cross-entropy instead.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from wind.errors import DatasetError
from wind.quantities import LOG_RATIO

# Sums of e^600 still fit a float64: one absurd response must not make a whole metric infinite.
MAX_EXPONENT: Final = 600.0

Floats = npt.NDArray[np.float64]


def row_metrics(evaluation: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of the evaluation: prompt_id, value.

    The metric is the mean of its values. With l = log pi(y) - log pi_ref(y) on samples y of the
    policy, kl_k1 is the mean of l and kl_k3 that of e^-l - 1 + l: both estimate KL(pi || pi_ref)
    without bias, the second never below zero (MATH 7). tie_share is the share of ties among all
    comparisons of a policy's response with a reference's, and accuracy_gain is policy minus
    reference. entropy is in nats per response; entropy_per_token divides each response's by its
    tokens.
    """
    values = {
        "win_rate": pl.col("win_rate"),
        "tie_share": pl.col("tie_share"),
        "mean_reward": pl.col("reward_policy"),
        "mean_reward_reference": pl.col("reward_reference"),
        "kl_k1": LOG_RATIO,
        "kl_k3": _k3(LOG_RATIO),
        "entropy": -pl.col("logp_policy"),
        "entropy_per_token": -pl.col("logp_policy") / pl.col("response_tokens_policy"),
        "response_tokens": pl.col("response_tokens_policy"),
        "truncated_share": pl.col("is_truncated_policy"),
        "accuracy": pl.col("accuracy_policy"),
        "accuracy_reference": pl.col("accuracy_reference"),
        "accuracy_gain": pl.col("accuracy_policy") - pl.col("accuracy_reference"),
    }
    return {
        name: evaluation.select("prompt_id", value=value.cast(pl.Float64)).drop_nulls()
        for name, value in values.items()
    }


def health_metrics(health: pl.DataFrame, evaluation: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of the health of responses: prompt_id, value.

    The metric is the mean of its values. logp_gap is in nats per token, without its sign. The KL to
    the policy before and to the reference are estimated as in `row_metrics`.
    """
    rows = health.join(
        evaluation.select("prompt_id", "sample_index", "logp_policy"),
        on=["prompt_id", "sample_index"],
        how="inner",
        validate="1:1",
        maintain_order="left",
    )
    if not len(rows) == len(health) == len(evaluation):
        raise DatasetError(
            f"the health of {len(health)} responses and an evaluation of {len(evaluation)} are not "
            "about the same: rerun health"
        )
    previous = pl.col("logp_policy") - pl.col("logp_previous")
    reference = pl.col("logp_policy") - pl.col("logp_reference")
    values = {
        "kl_previous_k1": previous,
        "kl_previous_k3": _k3(previous),
        "kl_reference_k1": reference,
        "kl_reference_k3": _k3(reference),
        "logp_gap": pl.col("logp_gap").abs(),
        "self_bleu": pl.col("self_bleu"),
        "repetition": pl.col("repetition"),
        "eos_share": pl.col("is_eos"),
        "empty_share": pl.col("is_empty"),
        "refusal_share": pl.col("is_refusal"),
    }
    return {
        name: rows.select("prompt_id", value=value.cast(pl.Float64)).drop_nulls()
        for name, value in values.items()
    }


def tied_prompts(rewards: pl.DataFrame) -> pl.DataFrame:
    """Tabulate which prompts' rewards are all equal: prompt_id, value 0 or 1.

    Such a prompt teaches nothing. `rewards` has prompt_id and reward; a prompt with a single
    response is left out.
    """
    return (
        rewards.group_by("prompt_id")
        .agg(count=pl.len(), value=(pl.col("reward").n_unique() == 1).cast(pl.Float64))
        .filter(pl.col("count") > 1)
        .select("prompt_id", "value")
        .sort("prompt_id")
    )


def reliability(win_rates: pl.DataFrame, rewards: pl.DataFrame) -> pl.DataFrame:
    """Tabulate what the reliability of win rates is the ratio of: prompt_id, sum, count.

    A response's win rate u over its n = N-1 siblings estimates P(y), with which it beats a fresh
    response; both average 1/2 on every prompt. Given y, u has the variance of one comparison
    divided by n (MATH 0.2), whose unbiased estimate is s^2 / n with the sample variance s^2 of its n
    comparisons. So (u - 1/2)^2 - s^2 / n estimates the variance of P(y) without bias, and divided
    by the mean of (u - 1/2)^2, that of u, it is the share of the variance of win rates that is no
    sampling noise: the reliability of test theory, which the correlation of the win rates over two
    halves of the siblings gives after the Spearman-Brown correction. Without ties and with a scalar
    reward it is n / (n + 2), whatever the reward; ties raise it.

    `sum` and `count` have one row for each prompt with three or more responses that do not all tie.
    With preferences, a comparison is the preference itself; otherwise 1, 1/2 or 0.
    """
    if "preferences" in rewards.columns:
        preferences = pl.col("preferences")
        points = preferences.list.sum() - 0.5
        squares = preferences.list.eval(pl.element() ** 2).list.sum() - 0.25
        rows = rewards.select("prompt_id", points=points, squares=squares)
    else:
        points, squares = (pl.col("wins") + pl.col("ties") / each for each in (2, 4))
        rows = win_rates.select("prompt_id", points=points, squares=squares)
    n, rate = pl.len().over("prompt_id") - 1, pl.col("points") / pl.col("n")
    variance = (pl.col("squares") - pl.col("n") * rate**2) / (pl.col("n") - 1)
    observed = (rate - 0.5) ** 2
    return (
        rows.with_columns(n=n)
        .filter(pl.col("n") > 1)
        .group_by("prompt_id")
        .agg(sum=(observed - variance / pl.col("n")).sum(), count=observed.sum())
        .filter(pl.col("count") > 0)
        .sort("prompt_id")
    )


def _k3(log_ratio: pl.Expr) -> pl.Expr:
    return log_ratio.map_batches(
        lambda log_ratios: pl.Series(kl_k3(log_ratios.to_numpy())), return_dtype=pl.Float64
    )


def benchmark_metrics(benchmarks: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of each benchmark: prompt_id, value.

    What is resampled are questions, which take the place of prompts.
    """
    metrics = benchmarks.partition_by("benchmark", "metric", as_dict=True)
    return {
        f"benchmark.{benchmark}.{metric}": rows.select(prompt_id="item", value="value").drop_nulls()
        for (benchmark, metric), rows in metrics.items()
    }


def kl_k3(log_ratios: Floats) -> Floats:
    """Compute e^-l - 1 + l, the k3 estimate of the KL.

    l is the log-ratio log pi(y) - log pi_ref(y). The estimate is never negative, and its mean over
    samples y of pi is KL(pi || pi_ref).
    """
    values: Floats = np.expm1(np.minimum(-log_ratios, MAX_EXPONENT)) + log_ratios
    return values.clip(min=0.0)  # rounding can leave -1e-17


def distinct_n(generations: pl.DataFrame, n: int) -> pl.DataFrame:
    """Tabulate each prompt's share of distinct n-grams among its responses.

    Returns one row per prompt: prompt_id, value in (0, 1].
    """
    grams = (
        generations.select(
            "prompt_id", "sample_index", word=pl.col("response").str.extract_all(r"\S+")
        )
        .explode("word", empty_as_null=True)
        .with_columns(
            *(
                pl.col("word").shift(-ahead).over("prompt_id", "sample_index").alias(f"word{ahead}")
                for ahead in range(1, n)
            ),
            left=pl.len().over("prompt_id", "sample_index")
            - pl.int_range(pl.len()).over("prompt_id", "sample_index"),
            is_first=pl.int_range(pl.len()).over("prompt_id", "sample_index") == 0,
        )
        .filter((pl.col("left") >= n) | pl.col("is_first"))
    )
    gram = pl.struct("word", *(f"word{ahead}" for ahead in range(1, n)))
    return grams.group_by("prompt_id").agg(value=gram.n_unique() / pl.len()).sort("prompt_id")


def distinct_responses(generations: pl.DataFrame) -> pl.DataFrame:
    """Count the distinct responses of each prompt: prompt_id, value >= 1."""
    return (
        generations.group_by("prompt_id")
        .agg(value=pl.col("response").n_unique().cast(pl.Float64))
        .sort("prompt_id")
    )


def last_loss(training: pl.DataFrame) -> tuple[float, int]:
    """Return the mean loss over the last tenth of the steps.

    The second value is the number of those steps. Raises DatasetError if no loss is recorded.
    """
    losses = training.filter(pl.col("metric") == "loss").sort("step")["value"]
    if not len(losses):
        raise DatasetError("the training has no metric called loss: rerun training")
    last = losses.tail(-(-len(losses) // 10)).to_numpy()
    return float(last.mean()), len(last)


def match_metrics(matches: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Tabulate the values of each metric of the matches: prompt_id, value.

    Each is named by the judge, and but for repeated verdicts by the opponent.
    """
    found = {}
    for (judge, opponent), rows in matches.group_by("judge", "opponent", maintain_order=True):
        for name in ("win_rate", "tie_share"):
            found[f"{name}.{judge}.{opponent}"] = rows.select("prompt_id", value=name)
    repeated = matches.drop_nulls("repeat_difference")
    for (judge,), rows in repeated.group_by("judge", maintain_order=True):
        found[f"repeat_difference.{judge}"] = rows.select("prompt_id", value="repeat_difference")
    return found
