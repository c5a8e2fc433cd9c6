"""Matches: the policy against each opponent, under each judge, on held-out prompts.

One row is one of the policy's responses under one judge: its win rate against *all* responses of
one opponent to the same prompt, as in the dataset `evaluation` (ties one half, equal responses
tie). A judge is a reward, the training one among them, or `gold`: there the response that is right
beats the one that is wrong, on the prompts that have an answer. An opponent is a policy, or a set
of stored responses, and may have any number of samples.

Lengths are in tokens of the policy's tokenizer. A response that another tokenizer made, or nobody
knows which, is encoded anew, and one is added for the token that ends it.
"""

from collections.abc import Iterator
from typing import Final

import polars as pl
import pyarrow as pa

from wind.config.evaluation import EvaluationConfig
from wind.errors import DatasetError
from wind.evaluation import accuracies, match_seconds, win_rates_over
from wind.quantities import RESPONSE_TOKENS
from wind.records import Record
from wind.rewards import judging_prompts
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, WorkerKind, one_side, unforeseen
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model, label
from wind.store.schemas import (
    PROMPT,
    PROMPT_ID,
    SAMPLE,
    SAMPLE_INDEX,
    Column,
    Declaration,
    ForeignKey,
)
from wind.win_rates import opponents_rewards

GOLD: Final = "gold"
DATASET = Declaration(
    row="one response of the policy to a held-out prompt, against one opponent under one judge",
    columns=(
        Column("judge", pa.string(), "training, gold, or a name in evaluation.judges"),
        Column("opponent", pa.string(), "initial, reference, or a name in evaluation.opponents"),
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("reward_policy", pa.float64(), "of the policy's response, by the judge"),
        Column(
            "reward_opponent",
            pa.float64(),
            "of the opponent's response of the same index, null where it has fewer",
            is_nullable=True,
        ),
        Column(
            "win_rate",
            pa.float64(),
            "of this response against all of the opponent's on the prompt, ties one half",
        ),
        Column("tie_share", pa.float64(), "[0, 1], of the same comparisons"),
        Column("response_tokens_policy", pa.int32(), ">= 1, by the policy's tokenizer"),
        Column(
            "response_tokens_opponent",
            pa.int32(),
            "likewise, of the opponent's response of the same index",
            is_nullable=True,
        ),
        Column(
            "mean_tokens_opponent",
            pa.float64(),
            "mean over all of the opponent's responses to the prompt",
        ),
        Column(
            "repeat_difference",
            pa.float64(),
            "[0, 1], of the judge's verdicts on this response that differ when repeated, null "
            "where they were not",
            is_nullable=True,
        ),
    ),
    key=("judge", "opponent", *SAMPLE),
    foreign_keys=(
        ForeignKey(PROMPT, "prompts"),
        ForeignKey(SAMPLE, "evaluation"),
        ForeignKey(SAMPLE, "generations_policy"),
    ),
)
KEY: Final = SAMPLE


class Opponent(Record):
    """An opponent's responses to the held-out prompts."""

    # of `generations`, or of `responses`
    responses: Dataset
    # whether they have token ids, by the policy's tokenizer
    has_tokens: bool


class Verdicts(Record):
    """What one judge says of the policy and one opponent."""

    # of a pairwise judge: against the opponent's responses
    policy: Dataset
    # None of a pairwise judge, whose preferences hold both sides
    opponent: Dataset | None = None
    # those on the policy once more, with another seed
    repeated: Dataset | None = None


class MatchesSpec(Spec):
    """All pairings of a policy's responses.

    `verdicts` are by judge, then by opponent; gold answers need none.
    """

    prompts: Dataset
    generations_policy: Dataset
    # of the same policy: it has its lengths and accuracies
    evaluation: Dataset
    opponents: dict[str, Opponent]
    verdicts: dict[str, dict[str, Verdicts]]
    # that holds the policy's tokenizer; None if all responses have tokens
    tokenizer: Model | None = None
    evaluation_config: EvaluationConfig
    # of the source of evaluation.match
    match_digest: str = ""

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs, each by the name of its task's dataset."""
        parents = super().parents()
        for name, opponent in self.opponents.items():
            parents[f"{opponent.responses.name}.{name}"] = opponent.responses
        for judge, by_opponent in self.verdicts.items():
            for name, verdicts in by_opponent.items():
                about = f"{name}.{judge}"
                parents |= {
                    parent: handle
                    for parent, handle in (
                        (f"rewards_policy.{about}", verdicts.policy),
                        (f"rewards_opponent.{about}", verdicts.opponent),
                        (f"rewards_repeated.{about}", verdicts.repeated),
                    )
                    if handle is not None
                }
        return parents


def matched(policy: pl.DataFrame, opponent: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one pairing, without judge and opponent, sorted by key.

    Both have the key, response, reward and tokens; with a pairwise judge the policy also has its
    preferences over the opponent's responses, and the opponent no reward. Raises InputError for a
    response to a prompt that the opponent did not answer.
    """
    wins = win_rates_over(policy, opponent)
    if "preferences" in policy.columns:
        opponent = opponent.join(opponents_rewards(policy, opponent), on=KEY, validate="1:1")
    theirs = opponent.select(
        *KEY, reward_opponent="reward", response_tokens_opponent="response_tokens"
    )
    lengths = opponent.group_by("prompt_id").agg(
        mean_tokens_opponent=pl.col("response_tokens").mean()
    )
    return (
        policy.rename({"reward": "reward_policy", "response_tokens": "response_tokens_policy"})
        .join(wins, on=KEY, how="inner", validate="1:1")
        .join(theirs, on=KEY, how="left", validate="1:1")
        .join(lengths, on="prompt_id", how="inner", validate="m:1")
        .sort(KEY)
    )


def repeat_differences(once: pl.DataFrame, again: pl.DataFrame) -> pl.DataFrame:
    """Return for each row the share of verdicts that differ between two scorings.

    Both have the key and reward, and those of a pairwise judge preferences: then every preference
    is a verdict, and otherwise the reward is. Returns key and repeat_difference.
    """
    column = "preferences" if "preferences" in once.columns else "reward"
    rows = once.select(*KEY, once=column).join(
        again.select(*KEY, again=column), on=KEY, how="inner", validate="1:1"
    )
    if not len(rows) == len(once) == len(again):
        raise DatasetError("the repeated verdicts are about other responses: rerun rewards")
    verdicts = rows.explode("once", "again") if column == "preferences" else rows
    differs = (pl.col("once") != pl.col("again")).mean()
    return verdicts.group_by(KEY).agg(repeat_difference=differs)


def _compute(
    spec: MatchesSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    pairings = [*_judged(spec, store), *_gold(spec, store, place)]
    table = pl.concat(pairings, how="diagonal_relaxed")
    if "repeat_difference" not in table.columns:
        table = table.with_columns(repeat_difference=pl.lit(None, pl.Float64))
    progress(len(table), len(table))
    return Shard(table.sort(DATASET.key).select(DATASET.schema.names).to_arrow())


def _judged(spec: MatchesSpec, store: Store) -> Iterator[pl.DataFrame]:
    """Yield the rows of every pairing that a reward judges."""
    ours = _policy(spec, store)
    for name, opponent in spec.opponents.items():
        theirs = _responses(spec, store, opponent)
        for judge, by_opponent in spec.verdicts.items():
            verdicts = by_opponent[name]
            rewards = _rewards(store, verdicts.policy)
            rows = matched(
                _with(ours, rewards, verdicts.policy),
                theirs
                if verdicts.opponent is None
                else _with(theirs, _rewards(store, verdicts.opponent), verdicts.opponent),
            )
            if verdicts.repeated is not None:
                again = repeat_differences(rewards, _rewards(store, verdicts.repeated))
                rows = rows.join(again, on=KEY, how="inner", validate="1:1")
            yield rows.with_columns(judge=pl.lit(judge), opponent=pl.lit(name))


def _gold(spec: MatchesSpec, store: Store, place: Place) -> Iterator[pl.DataFrame]:
    """Yield the rows of every pairing on the prompts with gold answers, if there are any."""
    prompts = judging_prompts(store, spec.prompts)
    ours = _policy(spec, store, reward="accuracy_policy").drop_nulls("reward")
    answered = prompts.drop_nulls("answer")
    for name, opponent in spec.opponents.items():
        theirs = _responses(spec, store, opponent).join(
            answered.select("prompt_id", "answer"),
            on="prompt_id",
            how="inner",
            validate="m:1",
            maintain_order="left",
        )
        if len(ours) and len(theirs):
            config, digest = spec.evaluation_config, spec.match_digest
            right = accuracies(config, digest, place, prompts, theirs)
            rows = matched(ours, theirs.with_columns(reward=right))
            yield rows.with_columns(judge=pl.lit(GOLD), opponent=pl.lit(name))


def _policy(spec: MatchesSpec, store: Store, **further: str) -> pl.DataFrame:
    """Return the policy's responses: key, response, response_tokens, and `further` columns.

    Those are renamed ones of the evaluation.
    """
    columns = [*KEY, "response_tokens_policy", *further.values()]
    evaluated = store.frame(spec.evaluation, columns)
    ours = store.frame(spec.generations_policy, [*KEY, "response"])
    rows = ours.join(evaluated, on=KEY, how="inner", validate="1:1", maintain_order="left")
    if not len(rows) == len(ours) == len(evaluated):
        raise DatasetError(
            f"{label(spec.evaluation)} is not about {label(spec.generations_policy)}: "
            "rerun evaluation"
        )
    return rows.select(*KEY, "response", response_tokens="response_tokens_policy", **further)


def _responses(spec: MatchesSpec, store: Store, opponent: Opponent) -> pl.DataFrame:
    """Return an opponent's responses: key, response, response_tokens."""
    if opponent.has_tokens:
        columns = [*KEY, "response", "response_token_ids"]
        rows = store.frame(opponent.responses, columns)
        return rows.select(*KEY, "response", response_tokens=RESPONSE_TOKENS.cast(pl.Int32))
    from wind.models.pretrained import load_tokenizer

    assert spec.tokenizer is not None, "a spec with texts alone names the tokenizer"
    tokenizer = load_tokenizer(store.path(spec.tokenizer))
    rows = store.frame(opponent.responses, [*KEY, "response"])
    encoded = tokenizer(rows["response"].to_list(), add_special_tokens=False, verbose=False)
    tokens = [len(token_ids) + 1 for token_ids in encoded["input_ids"]]
    return rows.with_columns(response_tokens=pl.Series(tokens, dtype=pl.Int32))


def _rewards(store: Store, rewards: Dataset) -> pl.DataFrame:
    has = store.open(rewards).schema.names
    columns = [name for name in (*KEY, "reward", "preferences") if name in has]
    return store.frame(rewards, columns)


def _with(responses: pl.DataFrame, rewards: pl.DataFrame, handle: Dataset) -> pl.DataFrame:
    rows = responses.join(rewards, on=KEY, how="inner", validate="1:1", maintain_order="left")
    if not len(rows) == len(responses) == len(rewards):
        raise DatasetError(f"{label(handle)} is about other responses: rerun rewards")
    return rows


def _numbers(spec: MatchesSpec, table: pa.Table) -> dict[str, float]:
    """Return the mean win rate of each pairing."""
    means = (
        pl.DataFrame(table.select(["judge", "opponent", "win_rate"]))
        .group_by("judge", "opponent")
        .agg(pl.col("win_rate").mean())
        .sort("judge", "opponent")
    )
    return {f"win_rate.{judge}.{opponent}": value for judge, opponent, value in means.iter_rows()}


def _worker(spec: MatchesSpec) -> WorkerKind | None:
    # A tokenizer takes seconds to import; what a user's function prints goes to a worker's log.
    is_light = spec.evaluation_config.match is None and spec.tokenizer is None
    return None if is_light else "transformers"


STAGE: Final[Stage[MatchesSpec]] = Stage(
    name="matches",
    spec=MatchesSpec,
    dataset=DATASET,
    dropped=None,
    shards=lambda spec, store: 1,
    compute=_compute,
    numbers=_numbers,
    worker=_worker,
    role=Role(
        phase="evaluation",
        sides=("",),
        side=one_side,
        history=(),
        is_timed=False,
        has_drift=False,
        expected=unforeseen,
        related_parents={
            "eval_": {
                "prompts": "prompts",
                "generations": "generations_policy",
                "evaluation": "evaluation",
            },
        },
        function_seconds=match_seconds,
    ),
)
