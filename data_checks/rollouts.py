"""Rollouts: as many responses of the policy, and of its anchor, to every prompt once in an epoch as
are meant; none too long.

They were trained on already: what fails here says that the model cannot be trusted, and nothing is
published.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation
from pydantic import TypeAdapter

from data_checks.base import (
    Frame,
    Subject,
    finite,
    is_finite,
    is_known,
    is_logp,
    is_response,
    known,
    unique,
)
from wind.config.checks import ChecksConfig
from wind.config.objectives import AnyObjectiveConfig, ObjectiveConfig
from wind.prompt_parts import sampled_prompts

KEY = ("step", "prompt_id", "sample_index")
GROUP = ("step", "prompt_id", "drawn_from")
TOLERANCE = 1e-9  # of a mean of N win rates in float64


def rows(rollouts: Subject) -> pl.DataFrame:
    """One row per response."""
    numbers = ("reward", "win_rate", "logp_policy", "logp_reference")
    columns = ("drawn_from", "response", "response_token_ids", "finish_reason", "seed", *numbers)
    frame = rollouts.rows(*KEY, *columns).select(
        *KEY,
        "drawn_from",
        "finish_reason",
        "seed",
        finite(*numbers),
        response_tokens=pl.col("response_token_ids").list.len(),
        is_empty=pl.col("response").str.strip_chars() == "",
        is_truncated=pl.col("finish_reason") == "length",
    )
    return known(frame, train_prompts(rollouts), ["prompt_id"])


def rows_expectations(rollouts: Subject, checks: ChecksConfig) -> list[Expectation]:
    limit = rollouts.setting("sampling", "max_new_tokens")
    return [
        unique(KEY),
        is_known("the prompts to train on"),
        gxe.ExpectColumnValuesToBeInSet(
            column="drawn_from",
            value_set=["policy", "anchor"],
            description="drawn from the policy or its anchor",
        ),
        *is_response(limit, checks),
        is_finite("reward"),
        is_finite("win_rate"),
        gxe.ExpectColumnValuesToBeBetween(
            column="win_rate", min_value=0, max_value=1, description="win rates lie in [0, 1]"
        ),
        *is_logp("logp_policy"),
        *is_logp("logp_reference"),
    ]


def groups(rollouts: Subject) -> pl.DataFrame:
    """One row per step, prompt and what was drawn from: its samples, and what all of them must say
    of one another.

    `samples` are the policy's and `anchor_samples` the anchor's; each is null in rows of the other.
    """
    meant = samples_meant(rollouts)
    rank, is_of_anchor = pl.col("rank"), pl.col("drawn_from") == "anchor"
    frame = rollouts.rows(*KEY, "drawn_from", "win_rate", "rank").group_by(
        GROUP, maintain_order=True
    )
    aggregated = frame.agg(
        drawn=pl.col("sample_index").n_unique(),
        mean_win_rate=pl.col("win_rate").mean(),
        is_ranked=(rank.n_unique() == pl.len()) & (rank.min() == 1) & (rank.max() == pl.len()),
    ).with_columns(
        samples=pl.when(~is_of_anchor).then("drawn"),
        anchor_samples=pl.when(is_of_anchor).then("drawn"),
    )
    is_whole = pl.col("drawn") == pl.when(is_of_anchor).then(meant["anchor"]).otherwise(
        meant["policy"]
    )
    # A lost row is one fault, not three: identities are judged where all samples are there.
    return aggregated.with_columns(
        finite("mean_win_rate"),
        is_ranked=pl.when(is_whole).then("is_ranked").otherwise(pl.lit(True)),
    ).with_columns(mean_win_rate=pl.when(is_whole).then("mean_win_rate").otherwise(pl.lit(0.5)))


def groups_expectations(rollouts: Subject, checks: ChecksConfig) -> list[Expectation]:
    meant = samples_meant(rollouts)
    return [
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=column,
                value_set=[meant[who]],
                description=f"every group has {meant[who]} samples of the {who}",
            )
            for column, who in (("samples", "policy"), ("anchor_samples", "anchor"))
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="mean_win_rate",
            min_value=0.5 - TOLERANCE,
            max_value=0.5 + TOLERANCE,
            description="the win rates of a group average one half",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_ranked", value_set=[True], description="the ranks of a group are 1 .. N"
        ),
    ]


def prompts(rollouts: Subject) -> pl.DataFrame:
    """One row per prompt to train on: at how many steps it was answered, by the policy and by what
    else was drawn from.
    """
    groups = rollouts.rows(*GROUP).unique()
    answered = groups.group_by("prompt_id").agg(
        steps=(pl.col("drawn_from") == "policy").sum(),
        anchor_steps=(pl.col("drawn_from") == "anchor").sum(),
    )
    joined = train_prompts(rollouts).join(
        answered, on="prompt_id", how="left", maintain_order="left"
    )
    return joined.with_columns(pl.col("steps", "anchor_steps").fill_null(0))


def prompts_expectations(rollouts: Subject, checks: ChecksConfig) -> list[Expectation]:
    epochs = rollouts.setting("training", "epochs")
    anchor = epochs * (samples_meant(rollouts)["anchor"] > 0)
    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="steps",
            value_set=[epochs],
            description=f"the policy answered every prompt {epochs} times, once an epoch",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="anchor_steps",
            value_set=[anchor],
            description=f"the anchor answered every prompt {anchor} times",
        ),
    ]


SUITE = (
    Frame("rows", KEY, rows, rows_expectations),
    Frame("groups", GROUP, groups, groups_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)


def samples_meant(rollouts: Subject) -> dict[str, int]:
    """How many samples of the policy and of the anchor every group is to have; of the latter 0
    where none is drawn.
    """
    objective = TypeAdapter[AnyObjectiveConfig](ObjectiveConfig).validate_python(
        rollouts.setting("objective")
    )
    samples = rollouts.setting("sampling", "samples_per_prompt")
    return {"policy": samples, "anchor": objective.anchor_samples_for(samples)}


def train_prompts(rollouts: Subject) -> pl.DataFrame:
    """The prompts to train on."""
    prompts = rollouts.parent("prompts").rows("prompt_id", "split")
    seed, iteration, parts = (rollouts.setting(name) for name in ("seed", "iteration", "parts"))
    return sampled_prompts(prompts, "train", seed, iteration, parts).select("prompt_id")
