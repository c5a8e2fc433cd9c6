"""Generations: exactly N responses of the right policy for every prompt of the split, none over the
length limit.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    Frame,
    Subject,
    finite,
    is_known,
    is_logp,
    is_present,
    is_response,
    known,
    present,
    unique,
)
from wind.config.checks import ChecksConfig
from wind.prompt_parts import sampled_prompts


def rows(generations: Subject) -> pl.DataFrame:
    """One row per response."""
    columns = ("policy", "response", "response_token_ids", "logp_sampler", "finish_reason", "seed")
    frame = generations.rows(*GENERATION, *columns).select(
        *GENERATION,
        "policy",
        "finish_reason",
        "seed",
        finite("logp_sampler"),
        response_tokens=pl.col("response_token_ids").list.len(),
        is_empty=pl.col("response").str.strip_chars() == "",
        is_truncated=pl.col("finish_reason") == "length",
    )
    return known(frame, prompts_of(generations), ["prompt_id"])


def rows_expectations(generations: Subject, checks: ChecksConfig) -> list[Expectation]:
    samples, limit = (
        generations.setting("sampling", "samples_per_prompt"),
        generations.setting("sampling", "max_new_tokens"),
    )
    policy = generations.input("policy").fingerprint
    return [
        unique(GENERATION),
        is_known("the prompts of its split"),
        gxe.ExpectColumnValuesToBeBetween(
            column="sample_index",
            min_value=0,
            max_value=samples - 1,
            description=f"sample_index is 0 .. {samples - 1}",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="policy", value_set=[policy], description="sampled by the parent policy"
        ),
        *is_response(limit, checks),
        *is_logp("logp_sampler"),
        gxe.ExpectColumnMeanToBeBetween(
            column="response_tokens",
            min_value=checks.min_mean_response_tokens,
            description=f"responses have at least {checks.min_mean_response_tokens:g} tokens on average",
        ),
    ]


def prompts(generations: Subject) -> pl.DataFrame:
    """One row per prompt of the split: how many different samples it has, null where it was lost."""
    frame = generations.rows(*GENERATION)
    samples = frame.group_by("prompt_id").agg(samples=pl.col("sample_index").n_unique())
    return present(prompts_of(generations), frame, ["prompt_id"]).join(
        samples, on="prompt_id", how="left", maintain_order="left"
    )


def prompts_expectations(generations: Subject, checks: ChecksConfig) -> list[Expectation]:
    samples = generations.setting("sampling", "samples_per_prompt")
    return [
        is_present("the prompts of its split"),
        gxe.ExpectColumnValuesToBeInSet(
            column="samples", value_set=[samples], description=f"every prompt has {samples} samples"
        ),
    ]


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)


def prompts_of(generations: Subject) -> pl.DataFrame:
    """The prompts the responses were drawn for."""
    split, seed, iteration, parts = (
        generations.setting(name) for name in ("split", "seed", "iteration", "parts")
    )
    prompts = generations.parent("prompts").rows("prompt_id", "split")
    return sampled_prompts(prompts, split, seed, iteration, parts).select("prompt_id")
