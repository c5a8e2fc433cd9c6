"""What each judge says about a policy's held-out responses, summed over each prompt.

Judges are compared on a scale that ties do not shrink. A 0/1 judge ties most pairs, and a real
reward few: of the same improvement, win rates with ties one half would show little under the first
and much under the second. So a judge's *gain* is (wins - losses) / (wins + losses) / 2, which is
the win rate over one half if nothing ties, and W = 1/2 + gain * (1 - ties) in general.
"""

from dataclasses import dataclass

import polars as pl

from wind.alarms.paired import Estimate

TRAINING = "training"
GOLD = "gold"

COLUMNS = ("judge", "prompt_id", "won", "decided", "rows")


def judged(evaluation: pl.DataFrame, matches: pl.DataFrame | None, opponent: str) -> pl.DataFrame:
    """Sum up every judge's comparisons with `opponent`, one row per judge and prompt.

    The columns are judge, prompt_id, won (of win rates less one half), decided (of what is no tie)
    and rows. `evaluation` has the training reward and the gold answers, `matches` the others.
    """
    accuracy = pl.col("accuracy_policy") - pl.col("accuracy_reference").mean().over("prompt_id")
    sides = [
        evaluation.select(
            "prompt_id",
            judge=pl.lit(TRAINING),
            won=pl.col("win_rate") - 0.5,
            decided=1 - pl.col("tie_share"),
        ),
        # Two 0/1 judgements differ as often as the accuracies do.
        evaluation.select(
            "prompt_id", judge=pl.lit(GOLD), won=accuracy / 2, decided=accuracy.abs()
        ).drop_nulls(),
    ]
    if matches is not None:
        is_other = (pl.col("opponent") == opponent) & ~pl.col("judge").is_in([TRAINING, GOLD])
        sides.append(
            matches.filter(is_other).select(
                "prompt_id",
                "judge",
                won=pl.col("win_rate") - 0.5,
                decided=1 - pl.col("tie_share"),
            )
        )
    return (
        pl.concat(side.select("judge", "prompt_id", "won", "decided") for side in sides)
        .group_by("judge", "prompt_id")
        .agg(pl.col("won").sum(), pl.col("decided").sum(), rows=pl.len())
        .select(COLUMNS)
        .sort("judge", "prompt_id")
    )


def lengths(evaluation: pl.DataFrame, side: str) -> pl.DataFrame:
    """Sum up the tokens of the responses of one side: prompt_id, tokens, rows."""
    return (
        evaluation.group_by("prompt_id")
        .agg(tokens=pl.col(f"response_tokens_{side}").cast(pl.Float64).sum(), rows=pl.len())
        .sort("prompt_id")
    )


def concordance(evaluation: pl.DataFrame) -> pl.DataFrame:
    """Compare reward and length among one policy's responses to one prompt.

    Returns prompt_id, `agreed` (pairs in which the longer response has the higher reward, less
    those in which it has the lower) and `ordered` (both): agreed over ordered is Goodman and
    Kruskal's gamma, in [-1, 1].
    """
    sides = [
        evaluation.select(
            "prompt_id",
            "sample_index",
            reward=pl.col(f"reward_{side}"),
            tokens=pl.col(f"response_tokens_{side}").cast(pl.Int64),
            side=pl.lit(side),
        )
        for side in ("policy", "reference")
    ]
    rows = pl.concat(sides)
    order = (pl.col("reward") - pl.col("reward_right")).sign() * (
        pl.col("tokens") - pl.col("tokens_right")
    ).sign()
    return (
        rows.join(rows, on=["prompt_id", "side"], how="inner")
        .filter(pl.col("sample_index") < pl.col("sample_index_right"))
        .group_by("prompt_id")
        .agg(agreed=order.sum(), ordered=order.abs().sum())
        .sort("prompt_id")
    )


@dataclass(frozen=True)
class Standing:
    """How a judge sees a policy: then and now, against the same opponent."""

    gain: Estimate  # from then to now, on the scale that ties do not shrink
    then: Estimate  # win rate, ties one half
    now: Estimate


def standing(now: pl.DataFrame, then: pl.DataFrame | None, prompts: pl.Series) -> Standing:
    """Return the standing on `prompts`, of the rows of one judge in a frame of `judged`.

    Without `then`, the policy was its opponent: it neither won nor lost.
    """
    gain, win_rate = _gain(now, prompts), _win_rate(now, prompts)
    if then is None:
        return Standing(gain, Estimate.constant(0.5, len(prompts)), win_rate)
    return Standing(gain - _gain(then, prompts), _win_rate(then, prompts), win_rate)


def _gain(rows: pl.DataFrame, prompts: pl.Series) -> Estimate:
    return ratio(rows, "won", "decided", prompts)


def _win_rate(rows: pl.DataFrame, prompts: pl.Series) -> Estimate:
    return ratio(rows, "won", "rows", prompts) + Estimate.constant(0.5, len(prompts))


def ratio(rows: pl.DataFrame, above: str, below: str, prompts: pl.Series) -> Estimate:
    """Estimate the ratio of two columns' sums over `prompts`, of which each has one row."""
    chosen = pl.DataFrame({"prompt_id": prompts}).join(
        rows, on="prompt_id", how="inner", validate="1:1", maintain_order="left"
    )
    return Estimate.ratio(
        chosen[above].cast(pl.Float64).to_numpy(), chosen[below].cast(pl.Float64).to_numpy()
    )


def common_prompts(*frames: pl.DataFrame) -> pl.Series:
    """Return the prompts that every frame has, in order."""
    shared = frames[0].select("prompt_id").unique()
    for frame in frames[1:]:
        shared = shared.join(frame, on="prompt_id", how="semi")
    return shared["prompt_id"].sort()
