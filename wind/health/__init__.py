"""Health: signs, response by response, of a policy that drifts or collapses.

One row is one held-out response of the policy that an iteration ended with: how its text looks
beside its siblings and by itself, its log-probability under the policy that the iteration began
with and under the reference that regularizes the update, and how far the sampler's
log-probability of its tokens is from the trainer's. Only sums over a response are stored, so the
gap per token is that of the sums: differences of opposite signs within a response cancel.

`wind.metrics` computes means and intervals.
"""

from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.errors import DatasetError
from wind.health.ngrams import repetition, self_bleu
from wind.health.refusals import IS_REFUSAL
from wind.quantities import IS_EMPTY, IS_TRUNCATED, LOGP_GAP
from wind.stages import (
    Place,
    Progress,
    Role,
    Shard,
    Spec,
    Stage,
    as_many_as,
    light,
    no_function,
    one_side,
)
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.schemas import PROMPT_ID, SAMPLE, SAMPLE_INDEX, Column, Declaration, ForeignKey

DATASET = Declaration(
    row="one held-out response of the policy, and signs of its health",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("is_empty", pa.bool_(), "whether it has nothing but white space"),
        Column("is_refusal", pa.bool_(), "whether it opens as refusals in English do"),
        Column("is_eos", pa.bool_(), "whether a stop token ended it"),
        Column("repetition", pa.float64(), "[0, 1), share of its 4-grams of tokens seen before"),
        Column(
            "self_bleu",
            pa.float64(),
            "[0, 1], BLEU-4 of its words against its siblings; null without words or siblings",
            is_nullable=True,
        ),
        Column(
            "logp_previous",
            pa.float64(),
            "nats <= 0, sum over response tokens, under the policy that the iteration began with",
        ),
        Column(
            "logp_reference",
            pa.float64(),
            "nats <= 0, likewise, under the reference that regularizes the update",
        ),
        Column(
            "logp_gap",
            pa.float64(),
            "nats per token, the trainer's log-probability minus the sampler's",
        ),
    ),
    key=SAMPLE,
    foreign_keys=(
        ForeignKey(SAMPLE, "generations", is_one_to_one=True),
        ForeignKey(SAMPLE, "logps", is_one_to_one=True),
    ),
)
KEY = DATASET.key


class HealthSpec(Spec):
    """The policy's held-out responses, and their log-probabilities under three policies.

    `logps` has those under the policy itself and under the policy it is evaluated against.
    """

    generations: Dataset
    logps: Dataset
    # under the policy that the iteration began with; None if it is evaluated against that one
    logps_previous: Dataset | None = None
    # under the reference of the recipe; None if it is evaluated against that one
    logps_reference: Dataset | None = None


def health(generations: pl.DataFrame, logps: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Return the health rows, one per row of `generations`, sorted by key.

    `logps` has the key, logp_policy and response_tokens, `others` the key, logp_previous and
    logp_reference. Raises DatasetError where one of them lacks a response that another has.
    """
    rows = generations
    for other in (logps, others):
        rows = rows.join(other, on=KEY, how="inner", validate="1:1")
        if not len(rows) == len(generations) == len(other):
            raise DatasetError(
                f"health has {len(generations)} responses and {len(other)} log-probabilities, and "
                f"{len(rows)} belong together: rerun logps"
            )
    rows = rows.sort(KEY)
    ends = pl.when(IS_TRUNCATED).then(0).otherwise(1)
    said = rows.select(
        pl.col("response_token_ids").list.slice(0, pl.col("response_token_ids").list.len() - ends)
    ).to_series()
    return rows.with_columns(
        is_empty=IS_EMPTY,
        is_refusal=IS_REFUSAL,
        is_eos=~IS_TRUNCATED,
        repetition=repetition(said),
        self_bleu=self_bleu(rows["prompt_id"], rows["response"]),
        logp_gap=LOGP_GAP,
    ).select(DATASET.schema.names)


def _shards(spec: HealthSpec, store: Store) -> int:
    return len(store.manifest(spec.generations).files)


def _compute(spec: HealthSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    columns = [*KEY, "response", "response_token_ids", "finish_reason", "logp_sampler"]
    generations = store.frame(spec.generations, columns, shard=index)
    logps = store.frame(spec.logps, [*KEY, "logp_policy", "response_tokens"], shard=index)
    previous = _logps_under(spec, store, index, spec.logps_previous, "logp_previous")
    reference = _logps_under(spec, store, index, spec.logps_reference, "logp_reference")
    try:
        rows = health(
            generations, logps, previous.join(reference, on=KEY, how="inner", validate="1:1")
        )
    except DatasetError as error:
        raise DatasetError(f"{label(spec.generations)}: {error}") from error
    progress(len(rows), len(rows))
    return Shard(rows.to_arrow())


def _logps_under(
    spec: HealthSpec, store: Store, index: int, scored: Dataset | None, name: str
) -> pl.DataFrame:
    """Return one shard's key and log-probabilities, as the column `name`.

    They are those of `scored`, where one model has both sides, or, if that is None, those under
    the policy that is evaluated against.
    """
    handle, column = (spec.logps, "logp_reference") if scored is None else (scored, "logp_policy")
    return store.frame(handle, [*KEY, column], shard=index).rename({column: name})


def _numbers(spec: HealthSpec, table: pa.Table) -> dict[str, float]:
    """Return the mean gap, in nats per token, and the mean share of repeated 4-grams."""
    return {
        "logp_gap": pc.mean(pc.abs(table["logp_gap"])).as_py(),
        "repetition": pc.mean(table["repetition"]).as_py(),
    }


STAGE: Final[Stage[HealthSpec]] = Stage(
    name="health",
    spec=HealthSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=light,
    role=Role(
        phase="evaluation",
        sides=("",),
        side=one_side,
        history=("eval",),
        is_timed=False,
        has_drift=False,
        expected=as_many_as("generations"),
        related_parents={"eval_": {"generations": "generations", "logps": "logps"}},
        function_seconds=no_function,
    ),
)
