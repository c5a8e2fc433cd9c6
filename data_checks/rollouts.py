"""Checks of rollouts: the planned responses to every prompt, once an epoch.

There are as many of the policy and of its anchor as planned, and none is too long. The model was
already trained on them: a failure means that it cannot be trusted, and nothing is published.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation
from pydantic import TypeAdapter

from data_checks.base import (
    IS_RANKED,
    RESPONSE,
    Frame,
    Subject,
    averages_one_half,
    finite,
    is_finite,
    is_known,
    is_logp,
    is_ranked,
    is_response,
    is_within_0_and_1,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.config.objectives import AnyObjectiveConfig, ObjectiveConfig
from wind.prompt_parts import sampled_prompts

KEY = ("step", "prompt_id", "sample_index")
GROUP = ("step", "prompt_id", "drawn_from")


def rows(rollouts: Subject) -> pl.DataFrame:
    """One row per response."""
    numbers = ("reward", "win_rate", "logp_policy", "logp_reference")
    columns = ("drawn_from", "response", "response_token_ids", "finish_reason", "seed", *numbers)
    frame = rollouts.rows(*KEY, *columns).select(
        *KEY,
        "drawn_from",
        finite(*numbers),
        *RESPONSE,
    )
    return with_parent(frame, train_prompts(rollouts), ["prompt_id"])


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
        is_within_0_and_1("win_rate", "win rates"),
        *is_logp("logp_policy"),
        *is_logp("logp_reference"),
    ]


def groups(rollouts: Subject) -> pl.DataFrame:
    """One row per step, prompt, and policy or anchor.

    It has the number of samples, their mean win rate, and whether they are ranked. `samples` counts
    the policy's and `anchor_samples` the anchor's; each is null in the other's rows.
    """
    planned = planned_samples(rollouts)
    is_of_anchor = pl.col("drawn_from") == "anchor"
    frame = rollouts.rows(*KEY, "drawn_from", "win_rate", "rank").group_by(
        GROUP, maintain_order=True
    )
    aggregated = frame.agg(
        drawn=pl.col("sample_index").n_unique(),
        mean_win_rate=pl.col("win_rate").mean(),
        is_ranked=IS_RANKED,
    ).with_columns(
        samples=pl.when(~is_of_anchor).then("drawn"),
        anchor_samples=pl.when(is_of_anchor).then("drawn"),
    )
    is_whole = pl.col("drawn") == pl.when(is_of_anchor).then(planned["anchor"]).otherwise(
        planned["policy"]
    )
    # A lost row is one fault and not three: the others are judged only in complete groups.
    return aggregated.with_columns(
        finite("mean_win_rate"),
        is_ranked=pl.when(is_whole).then("is_ranked").otherwise(pl.lit(True)),
    ).with_columns(mean_win_rate=pl.when(is_whole).then("mean_win_rate").otherwise(pl.lit(0.5)))


def groups_expectations(rollouts: Subject, checks: ChecksConfig) -> list[Expectation]:
    planned = planned_samples(rollouts)
    return [
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=column,
                value_set=[planned[who]],
                description=f"every group has {planned[who]} samples of the {who}",
            )
            for column, who in (("samples", "policy"), ("anchor_samples", "anchor"))
        ),
        averages_one_half("group"),
        is_ranked("group"),
    ]


def prompts(rollouts: Subject) -> pl.DataFrame:
    """One row per training prompt.

    It has the number of steps at which the policy answered it, and at which the anchor did.
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
    anchor = epochs * (planned_samples(rollouts)["anchor"] > 0)
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


def planned_samples(rollouts: Subject) -> dict[str, int]:
    """Return how many samples of policy and anchor a group should have.

    It is 0 for an anchor that is not sampled from.
    """
    objective = TypeAdapter[AnyObjectiveConfig](ObjectiveConfig).validate_python(
        rollouts.setting("objective")
    )
    samples = rollouts.setting("sampling", "samples_per_prompt")
    return {"policy": samples, "anchor": objective.anchor_samples_for(samples)}


def train_prompts(rollouts: Subject) -> pl.DataFrame:
    """Return the training prompts."""
    prompts = rollouts.parent("prompts").rows("prompt_id", "split")
    seed, iteration, parts = (rollouts.setting(name) for name in ("seed", "iteration", "parts"))
    return sampled_prompts(prompts, "train", seed, iteration, parts).select("prompt_id")
