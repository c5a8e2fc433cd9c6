"""Checks of generations: N responses to every prompt of the split.

All are of the right policy, and none is over the length limit.
"""

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import (
    GENERATION,
    RESPONSE,
    Frame,
    Subject,
    finite,
    has_samples,
    is_known,
    is_logp,
    is_response,
    is_sample_index,
    prompt_samples,
    unique,
    with_parent,
)
from wind.config.checks import ChecksConfig
from wind.prompt_parts import sampled_prompts


def rows(generations: Subject) -> pl.DataFrame:
    """One row per response."""
    columns = ("policy", "response", "response_token_ids", "logp_sampler", "finish_reason", "seed")
    frame = generations.rows(*GENERATION, *columns).select(
        *GENERATION,
        "policy",
        finite("logp_sampler"),
        *RESPONSE,
    )
    return with_parent(frame, prompts_of(generations), ["prompt_id"])


def rows_expectations(generations: Subject, checks: ChecksConfig) -> list[Expectation]:
    samples, limit = (
        generations.setting("sampling", "samples_per_prompt"),
        generations.setting("sampling", "max_new_tokens"),
    )
    policy = generations.input("policy").fingerprint
    return [
        unique(GENERATION),
        is_known("the prompts of its split"),
        is_sample_index(samples),
        gxe.ExpectColumnValuesToBeInSet(
            column="policy", value_set=[policy], description="sampled by the parent policy"
        ),
        *is_response(limit, checks),
        *is_logp("logp_sampler"),
        gxe.ExpectColumnMeanToBeBetween(
            column="response_tokens",
            min_value=checks.min_mean_response_tokens,
            description=(
                f"responses have at least {checks.min_mean_response_tokens:g} tokens on average"
            ),
        ),
    ]


def prompts(generations: Subject) -> pl.DataFrame:
    """One row per prompt of the split, with its number of samples."""
    return prompt_samples(prompts_of(generations), generations.rows(*GENERATION))


def prompts_expectations(generations: Subject, checks: ChecksConfig) -> list[Expectation]:
    samples = generations.setting("sampling", "samples_per_prompt")
    return has_samples("the prompts of its split", samples)


SUITE = (
    Frame("rows", GENERATION, rows, rows_expectations),
    Frame("prompts", ("prompt_id",), prompts, prompts_expectations),
)


def prompts_of(generations: Subject) -> pl.DataFrame:
    """Return the prompts that the responses were sampled for."""
    split, seed, iteration, parts = (
        generations.setting(name) for name in ("split", "seed", "iteration", "parts")
    )
    prompts = generations.parent("prompts").rows("prompt_id", "split")
    return sampled_prompts(prompts, split, seed, iteration, parts).select("prompt_id")
