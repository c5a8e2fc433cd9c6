"""Evaluation: the policy's responses to held-out prompts, beside the reference's.

One row is one eval prompt and sample: the policy's response number i, its win rate against *all*
responses of the reference to the same prompt (ties one half, MATH 7; equal responses tie), and next
to it the reference's response number i. With a relative reward the policy's responses were scored
against the reference's: the win rate is the mean preference, and so are both rewards, each side's
over the other. `wind.metrics` computes means and intervals.
"""

from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.answers import is_same
from wind.code.functions import source_digest
from wind.config.evaluation import EvaluationConfig
from wind.errors import DatasetError, InputError
from wind.quantities import IS_TRUNCATED, RESPONSE_TOKENS
from wind.rewards import judging_prompts, refuse_relative, responses
from wind.rewards.functions import UserFunction, checked_numbers
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, WorkerKind, as_many_as, one_side
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.schemas import (
    PROMPT,
    PROMPT_ID,
    SAMPLE,
    SAMPLE_INDEX,
    Column,
    Declaration,
    ForeignKey,
)
from wind.win_rates import opponents_rewards, win_rates_against, win_rates_of_preferences

DATASET = Declaration(
    row="one eval prompt and sample: the policy's response beside the reference's",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("reward_policy", pa.float64(), "of the policy's response"),
        Column("reward_reference", pa.float64(), "of the reference's response"),
        Column(
            "win_rate",
            pa.float64(),
            "of this response against all of the reference's on the prompt, ties one half",
        ),
        Column("tie_share", pa.float64(), "[0, 1], of the same comparisons"),
        Column("response_tokens_policy", pa.int32(), ">= 1"),
        Column("response_tokens_reference", pa.int32(), ">= 1"),
        Column(
            "is_truncated_policy", pa.bool_(), "whether max_new_tokens ended the policy's response"
        ),
        Column(
            "is_truncated_reference",
            pa.bool_(),
            "whether max_new_tokens ended the reference's response",
        ),
        Column("logp_policy", pa.float64(), "of the policy's response under the policy"),
        Column("logp_reference", pa.float64(), "of the policy's response under the reference"),
        Column(
            "accuracy_policy", pa.float64(), "0 | 1, null without a gold answer", is_nullable=True
        ),
        Column("accuracy_reference", pa.float64(), "0 | 1, likewise", is_nullable=True),
    ),
    key=SAMPLE,
    foreign_keys=(
        ForeignKey(PROMPT, "prompts"),
        ForeignKey(SAMPLE, "generations_policy", is_one_to_one=True),
        ForeignKey(SAMPLE, "rewards_policy", is_one_to_one=True),
        ForeignKey(SAMPLE, "logps", is_one_to_one=True),
        ForeignKey(PROMPT, "generations_reference", is_one_to_one=True),
    ),
)
KEY = DATASET.key


class EvaluationSpec(Spec):
    """Two policies' rewarded responses to the eval prompts.

    The log-probabilities are those of the first policy's responses.
    """

    prompts: Dataset
    generations_policy: Dataset
    generations_reference: Dataset
    # with a relative reward: against the reference's responses
    rewards_policy: Dataset
    # None with a relative reward, whose preferences hold both sides
    rewards_reference: Dataset | None = None
    logps: Dataset  # of the policy's responses, under the policy and under the reference
    evaluation: EvaluationConfig
    # of the source of evaluation.match, see `resolve_match`
    match_digest: str = ""


def resolve_match(config: EvaluationConfig) -> str:
    """Return the digest of the source of `evaluation.match`.

    It is empty if that is unset. Raises ConfigError as `source_digest` does.
    """
    return "" if config.match is None else source_digest("evaluation.match", config.match)


def evaluation(policy: pl.DataFrame, reference: pl.DataFrame, logps: pl.DataFrame) -> pl.DataFrame:
    """Return the evaluation rows, one per row of `policy`, sorted by key.

    `policy` and `reference` have the key, response, reward, response_tokens, is_truncated and
    accuracy; with a pairwise reward the policy also has its preferences over the reference's
    responses, and the reference no reward. `logps` has the key and both log-probabilities, in nats.
    Raises InputError where one of them lacks a prompt and sample that another has.
    """
    wins = win_rates_over(policy, reference)
    if "preferences" in policy.columns:
        reference = reference.join(opponents_rewards(policy, reference), on=KEY, validate="1:1")
        policy = policy.drop("preferences")
    reference = reference.select(pl.col(*KEY), pl.exclude(KEY).name.suffix("_reference"))
    policy = policy.select(pl.col(*KEY), pl.exclude(KEY).name.suffix("_policy"))
    rows = policy
    for what, other in (
        ("reference responses", reference),
        ("log-probabilities", logps),
        ("win rates", wins),
    ):
        rows = rows.join(other, on=KEY, how="inner", validate="1:1")
        if not len(rows) == len(policy) == len(other):
            raise InputError(
                f"evaluation has {len(policy)} responses of the policy and {len(other)} {what}, "
                f"and {len(rows)} belong together: "
                "sample both with the same prompts and samples_per_prompt"
            )
    return rows.sort(KEY).select(DATASET.schema.names)


def win_rates_over(policy: pl.DataFrame, opponent: pl.DataFrame) -> pl.DataFrame:
    """Return the win rate and tie share of each response over all of an opponent's.

    Both have the key, response and reward; or the policy has preferences over the opponent's
    responses, and the opponent no reward. Ties count one half (MATH 7), and equal responses tie.
    """
    if "preferences" in policy.columns:
        return win_rates_of_preferences(policy)
    return win_rates_against(*_judged_alike(policy, opponent))


def _judged_alike(
    policy: pl.DataFrame, reference: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return key and reward of both sides, equal responses with equal rewards.

    Equal responses to a prompt get the reward of the reference's first. Each side was scored by
    itself, and the last bits of a model's output depend on what else is in the batch: because of
    them a response would win or lose against itself.
    """
    sides = [
        side.select(*KEY, "response", "reward").with_columns(side=pl.lit(place))
        for place, side in enumerate((reference, policy))
    ]
    first = pl.col("reward").sort_by("side", "sample_index").first().over("prompt_id", "response")
    judged = pl.concat(sides).with_columns(
        reward=pl.when(pl.col("reward").is_nan()).then("reward").otherwise(first)
    )
    return judged.filter(side=1), judged.filter(side=0)


def accuracies(
    config: EvaluationConfig,
    match_digest: str,
    place: Place,
    prompts: pl.DataFrame,
    rows: pl.DataFrame,
) -> pl.Series:
    """Return the accuracy of each row, 0 or 1, and null without a gold answer.

    `rows` have the key, response and answer, and `prompts` is what `judging_prompts` returns.
    """
    if config.match is None:
        return exact_match(rows)
    match = UserFunction(
        "evaluation.match", config.match, match_digest, place.function_seconds, place.device
    )
    return function_match(match, prompts, rows)


def exact_match(rows: pl.DataFrame) -> pl.Series:
    """Return the accuracy of each row by comparison with its gold answer.

    It is 1 where `response` is the same as `answer`, see `wind.answers.is_same`, 0 where it is not,
    and null without an answer.
    """
    pairs = zip(rows["response"], rows["answer"], strict=True)
    return pl.Series(
        "accuracy",
        [
            None if answer is None else float(is_same(response, answer))
            for response, answer in pairs
        ],
        dtype=pl.Float64,
    )


def function_match(match: UserFunction, prompts: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    """Return the accuracy of each row by the user's function.

    `match` judges the responses with a gold answer, 0 or 1; the others are null. `prompts` are the
    prompts it sees. Raises InputError for everything that the function can do wrong, and for any
    other number.
    """
    answered = rows.with_row_index("row").filter(pl.col("answer").is_not_null())
    accuracy = np.full(len(rows), None, dtype=object)
    if len(answered):
        judged = responses(prompts, answered.drop("answer"))
        columns = match(judged)
        if [*columns] != [""]:
            raise InputError(
                f"{match} returned {', '.join(columns) or 'a dict'}: return one number per response"
            )
        matches = checked_numbers(str(match), columns[""], judged)
        wrong = np.flatnonzero((matches != 0) & (matches != 1))
        if wrong.size:
            raise InputError(
                f"{match} gave {matches[wrong[0]]} for {judged.where(int(wrong[0]))}: return 0 or 1"
            )
        accuracy[answered["row"].to_numpy()] = matches
    return pl.Series(accuracy.tolist(), dtype=pl.Float64)


def _side(
    spec: EvaluationSpec,
    store: Store,
    place: Place,
    prompts: pl.DataFrame,
    generations: Dataset,
    rewards: Dataset | None,
) -> pl.DataFrame:
    """Return one policy's responses with their rewards and accuracy.

    The columns are the key, those of its rewards, response, response_tokens, is_truncated and
    accuracy.
    """
    columns = [*KEY, "response", "response_token_ids", "finish_reason"]
    sampled = store.frame(generations, columns)
    rewarded = sampled.select(KEY) if rewards is None else _rewards(spec, store, rewards)
    rows = sampled.join(rewarded, on=KEY, how="inner", validate="1:1", maintain_order="left")
    rows = rows.join(
        prompts.select("prompt_id", "answer"),
        on="prompt_id",
        how="inner",
        validate="m:1",
        maintain_order="left",
    )
    if not len(rows) == generations.rows == len(rewarded):
        of = label(spec.rewards_policy if rewards is None else rewards)
        raise DatasetError(
            f"{of} and {label(spec.prompts)} do not belong to {label(generations)}: rerun rewards"
        )
    accuracy = accuracies(spec.evaluation, spec.match_digest, place, prompts, rows)
    return rows.select(
        *rewarded.columns,
        "response",
        response_tokens=RESPONSE_TOKENS,
        is_truncated=IS_TRUNCATED,
        accuracy=accuracy,
    )


def _rewards(spec: EvaluationSpec, store: Store, rewards: Dataset) -> pl.DataFrame:
    """Return key and reward, and the preferences of a pairwise reward.

    The preferences are over the reference's responses.
    """
    if spec.rewards_reference is not None:
        refuse_relative(store, rewards)
        return store.frame(rewards, [*KEY, "reward"])
    if "preferences" not in store.open(rewards).schema.names:
        raise DatasetError(
            f"{label(rewards)} has no preferences: "
            "a scalar reward needs the reference's rewards beside it"
        )
    return store.frame(rewards, [*KEY, "reward", "preferences"])


def _shards(spec: EvaluationSpec, store: Store) -> int:
    return 1


def _compute(
    spec: EvaluationSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    prompts = judging_prompts(store, spec.prompts)
    policy = _side(spec, store, place, prompts, spec.generations_policy, spec.rewards_policy)
    reference = _side(
        spec, store, place, prompts, spec.generations_reference, spec.rewards_reference
    )
    rows = evaluation(
        policy, reference, store.frame(spec.logps, [*KEY, "logp_policy", "logp_reference"])
    )
    progress(len(rows), len(rows))
    return Shard(rows.to_arrow())


def _numbers(spec: EvaluationSpec, table: pa.Table) -> dict[str, float]:
    return {
        name: pc.mean(table[name]).as_py()
        for name in ("win_rate", "reward_policy", "reward_reference")
    }


def _worker(spec: EvaluationSpec) -> WorkerKind | None:
    # What a user's function prints goes to a worker's log.
    return None if spec.evaluation.match is None else "transformers"


def match_seconds(config: Any) -> float | None:
    """Return how many seconds one call of `evaluation.match` may take.

    `config` is the config of a recipe.
    """
    seconds: float | None = config.evaluation.match_timeout
    return seconds


STAGE: Final[Stage[EvaluationSpec]] = Stage(
    name="evaluation",
    spec=EvaluationSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=_worker,
    role=Role(
        phase="evaluation",
        sides=("",),
        side=one_side,
        history=("eval",),
        is_timed=True,
        has_drift=True,
        expected=as_many_as("generations_policy"),
        related_parents={
            "eval_": {
                "prompts": "prompts",
                "generations": "generations_policy",
                "rewards": "rewards_policy",
                "logps": "logps",
            },
            "reference_": {
                "prompts": "prompts",
                "generations": "generations_reference",
                "rewards": "rewards_reference",
            },
        },
        function_seconds=match_seconds,
    ),
)
