"""The schema of every dataset: the authority on columns, their types, units and ranges.

Columns are non-null unless marked. Every write casts to its schema and fails if it cannot. Rows are sorted by key.

What was stored stays readable: a release that changes a schema may only add nullable columns, behind the others, and then raises
`VERSION`. Readers of an older dataset get those columns as null; nothing is rewritten, and its fingerprint stays.
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from wind.errors import DatasetError, first_line

VERSION: Final = 1

MESSAGE = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
    ]
)
TOKENS = pa.list_(pa.field("item", pa.int32(), nullable=False))


def _schema(*fields: tuple[str, pa.DataType], nullable: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in nullable) for name, kind in fields])


SCHEMAS: Final[dict[str, pa.Schema]] = {
    # one prompt
    "prompts": _schema(
        ("prompt_id", pa.string()),  # 32 hex digits: hash of the rendered prompt
        ("prompt", pa.string()),  # rendered text, exactly what the token ids spell
        (
            "messages",
            pa.list_(pa.field("item", MESSAGE, nullable=False)),
        ),  # role and text; a plain string is one user message
        (
            "prompt_token_ids",
            TOKENS,
        ),  # as the chat template, or for plain text the tokenizer, gives them
        ("split", pa.string()),  # train | eval
        (
            "answer",
            pa.string(),
        ),  # gold answer as `wind.answers` writes it, null where none is known
        (
            "meta",
            pa.string(),
        ),  # JSON object: the row's other fields, and its messages where `messages` does not say all
        nullable=("answer",),
    ),
    # one row of a source that did not become a prompt, and why
    "prompts.dropped": _schema(
        ("row", pa.int64()),  # 0-based position in the source
        ("prompt_id", pa.string()),  # of the rendered prompt
        ("reason", pa.string()),  # duplicate | too_long
        ("prompt_tokens", pa.int32()),
    ),
    # one response sampled by a named policy
    "generations": _schema(
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),  # 0 .. N-1
        ("policy", pa.string()),  # fingerprint of the model that sampled it
        ("response", pa.string()),  # text without special tokens
        ("response_token_ids", TOKENS),  # includes the stop token when finish_reason is stop
        (
            "logp_sampler",
            pa.float64(),
        ),  # nats <= 0, sum over response_token_ids at temperature 1, as the sampler saw it
        ("finish_reason", pa.string()),  # stop | length
        ("seed", pa.int64()),  # of this response's own random generator
    ),
    # one response as the reward sees it; further columns follow, see `rewards_schema` and `preferences_schema`
    "rewards": _schema(
        ("prompt_id", pa.string()), ("sample_index", pa.int32()), ("reward", pa.float64())
    ),
    # one response against its N-1 siblings
    "win_rates": _schema(
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("win_rate", pa.float64()),  # [0, 1], mean 1/2 over the N of a prompt
        (
            "wins",
            pa.int32(),
        ),  # siblings with a lower reward; of preferences: beaten with a probability above 1/2
        ("ties", pa.int32()),  # siblings with an equal reward, itself not counted
        ("losses", pa.int32()),
        (
            "rank",
            pa.int32(),
        ),  # 1 is best; equal rewards, or win rates of preferences, are ordered by sample_index
    ),
    # one response and what training does with it
    "selections": _schema(
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("role", pa.string()),  # all | best | worst | random | unused | below_margin
        ("label", pa.float64()),  # [0, 1], the win rate that training is told
    ),
    # one response under the frozen models
    "logps": _schema(
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("logp_policy", pa.float64()),  # nats <= 0, sum over response tokens
        ("logp_reference", pa.float64()),
        ("response_tokens", pa.int32()),  # >= 1
    ),
    # one response sampled by the policy in training, or by its anchor; component columns follow, see `rewards_schema`
    "rollouts": _schema(
        ("step", pa.int32()),  # 1-based optimiser step that it was sampled for
        ("prompt_id", pa.string()),
        (
            "sample_index",
            pa.int32(),
        ),  # 0 .. N-1 of the policy, then N .. 2N-1 of the anchor, where the objective draws from it
        (
            "drawn_from",
            pa.string(),
        ),  # policy | anchor, as it was when the samples of this step were drawn
        ("response", pa.string()),  # text without special tokens
        ("response_token_ids", TOKENS),  # includes the stop token when finish_reason is stop
        ("finish_reason", pa.string()),  # stop | length
        ("seed", pa.int64()),  # of this response's own random generator
        ("reward", pa.float64()),
        (
            "win_rate",
            pa.float64(),
        ),  # [0, 1], among those drawn from the same for the same prompt and step: mean 1/2
        (
            "rank",
            pa.int32(),
        ),  # among the same; 1 is best, equal rewards are ordered by sample_index
        (
            "logp_policy",
            pa.float64(),
        ),  # nats <= 0, under the policy when the samples of this step were drawn
        (
            "logp_reference",
            pa.float64(),
        ),  # nats <= 0, under the reference at that time: an ema moves
    ),
    # one number of one optimiser step
    "training": _schema(("step", pa.int32()), ("metric", pa.string()), ("value", pa.float64())),
    # one eval prompt and sample: the policy's response beside the reference's
    "evaluation": _schema(
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("reward_policy", pa.float64()),
        ("reward_reference", pa.float64()),
        (
            "win_rate",
            pa.float64(),
        ),  # of this response against all of the reference's on the prompt, ties one half
        ("tie_share", pa.float64()),  # [0, 1], of the same comparisons
        ("response_tokens_policy", pa.int32()),
        ("response_tokens_reference", pa.int32()),
        ("is_truncated_policy", pa.bool_()),
        ("is_truncated_reference", pa.bool_()),
        ("logp_policy", pa.float64()),  # of the policy's response under the policy
        ("logp_reference", pa.float64()),  # of the policy's response under the reference
        ("accuracy_policy", pa.float64()),  # 0 | 1, null without a gold answer
        ("accuracy_reference", pa.float64()),
        nullable=("accuracy_policy", "accuracy_reference"),
    ),
    # one number of one iteration
    "metrics": _schema(
        ("iteration", pa.int32()),  # 1-based; 0 is the policy that the run began with
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),  # 95% interval, null where none is estimated
        ("high", pa.float64()),
        ("n", pa.int64()),  # rows behind the value
        nullable=("low", "high"),
    ),
    # one number of one iteration of one run
    "comparison": _schema(
        ("recipe", pa.string()),
        ("setting", pa.string()),  # what was set beside the recipe, empty for the recipe as it is
        ("seed", pa.int64()),
        ("iteration", pa.int32()),  # 0 is the policy that all began with
        (
            "metric",
            pa.string(),
        ),  # those of metrics; samples and reward_calls, spent since iteration 0
        ("value", pa.float64()),
        ("low", pa.float64()),  # as in metrics: over the prompts of this one run
        ("high", pa.float64()),
        ("n", pa.int64()),
        nullable=("low", "high"),
    ),
    # one number of one algorithm on one bandit instance at one iteration
    "bandit": _schema(
        ("samples", pa.int32()),  # responses drawn per prompt; 0: the algorithm is exact
        ("algorithm", pa.string()),
        ("instance", pa.string()),
        ("prompts", pa.int32()),  # asked per iteration
        ("seed", pa.int32()),  # 0 .. repetitions - 1
        ("iteration", pa.int32()),  # 0 is the reference
        ("metric", pa.string()),
        ("value", pa.float64()),
    ),
    # one number that the trajectories of a bandit run amount to
    "rates": _schema(
        ("samples", pa.int32()),  # 0: exact, or what varies
        ("algorithm", pa.string()),
        ("instance", pa.string()),
        ("prompts", pa.int32()),  # 0: what varies
        ("quantity", pa.string()),
        ("value", pa.float64()),
        ("error", pa.float64()),  # standard error, null where none is estimated
        ("n", pa.int64()),  # numbers behind the value
        nullable=("error",),
    ),
}

KEYS: Final[dict[str, tuple[str, ...]]] = {
    "prompts": ("prompt_id",),
    "prompts.dropped": ("row",),
    "training": ("step", "metric"),
    "rollouts": ("step", "prompt_id", "sample_index"),
    "metrics": ("iteration", "metric"),
    "comparison": ("recipe", "setting", "seed", "iteration", "metric"),
    "bandit": ("samples", "algorithm", "instance", "prompts", "seed", "iteration", "metric"),
    "rates": ("samples", "algorithm", "instance", "prompts", "quantity"),
} | dict.fromkeys(
    ("generations", "rewards", "win_rates", "selections", "logps", "evaluation"),
    ("prompt_id", "sample_index"),
)


PROMPT: Final = ("prompt_id",)
SAMPLE: Final = ("prompt_id", "sample_index")


@dataclass(frozen=True)
class ForeignKey:
    """Columns of a dataset whose values are keys of another: of the parent that the dataset's spec calls `parent`."""

    columns: tuple[str, ...]
    parent: str
    is_one_to_one: bool = False  # every key of the parent has its row, too


FOREIGN_KEYS: Final[dict[str, tuple[ForeignKey, ...]]] = {
    "generations": (ForeignKey(PROMPT, "prompts"), ForeignKey(("policy",), "policy")),
    "rewards": (
        ForeignKey(SAMPLE, "generations", is_one_to_one=True),
        ForeignKey(PROMPT, "opponents"),
    ),
    "win_rates": (ForeignKey(SAMPLE, "rewards", is_one_to_one=True),),
    "selections": (
        ForeignKey(SAMPLE, "rewards", is_one_to_one=True),
        ForeignKey(SAMPLE, "win_rates", is_one_to_one=True),
    ),
    "logps": (ForeignKey(SAMPLE, "generations", is_one_to_one=True),),
    "rollouts": (ForeignKey(PROMPT, "prompts"),),
    "evaluation": (
        ForeignKey(PROMPT, "prompts"),
        ForeignKey(SAMPLE, "generations_policy", is_one_to_one=True),
        ForeignKey(SAMPLE, "rewards_policy", is_one_to_one=True),
        ForeignKey(SAMPLE, "logps", is_one_to_one=True),
        ForeignKey(PROMPT, "generations_reference", is_one_to_one=True),
    ),
}


def rewards_schema(components: tuple[str, ...] = (), dataset: str = "rewards") -> pa.Schema:
    """The schema of rewards, or of rollouts, with one further non-null column per component of the reward."""
    return pa.schema(
        [*SCHEMAS[dataset], *(pa.field(name, pa.float64(), nullable=False) for name in components)]
    )


def preferences_schema() -> pa.Schema:
    """The rewards schema of a pairwise reward.

    `reward` is then the mean preference over the others. `preferences` is a row of the preference matrix: P(this response beats
    response j) in [0, 1], by the sample_index of the N responses to the prompt, 1/2 at its own place; or by the sample_index of
    the opponents it was scored against. `cut_share` in [0, 1] is the share of its comparisons that read a text cut to fit.
    """
    numbers = pa.list_(pa.field("item", pa.float64(), nullable=False))
    further = (
        pa.field("preferences", numbers, nullable=False),
        pa.field("cut_share", pa.float64(), nullable=False),
    )
    return pa.schema([*SCHEMAS["rewards"], *further])


def evolved(name: str, stored: pa.Schema, version: int) -> pa.Schema:
    """The schema that readers see of a dataset that was written with `version`: its own, and behind it what was added since.

    Raises DatasetError if a newer release wrote it, or if it lacks a column that may not be null.
    """
    if version > VERSION:
        raise DatasetError(
            f"{name} has schema version {version}, and this release knows {VERSION}: update it"
        )
    added = [field for field in SCHEMAS.get(name, ()) if field.name not in stored.names]
    required = [field.name for field in added if not field.nullable]
    if required:
        raise DatasetError(
            f"{name} of schema version {version} lacks {', '.join(required)}: rerun the stage that makes it"
        )
    return pa.schema([*stored, *added])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns, order, types and nullability of `schema`. Raises DatasetError otherwise."""
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra or len(table.column_names) != len(schema):
        raise DatasetError(f"columns do not fit the schema: missing {missing}, undeclared {extra}")
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DatasetError(
            f"a column does not fit its declared type: {first_line(error)}"
        ) from error
    for field, column in zip(schema, table.columns, strict=True):
        for chunk in column.chunks:
            _require_values(field.name, field, chunk)
    return table.combine_chunks()


def _require_values(name: str, field: pa.Field, values: pa.Array) -> None:
    """Raise DatasetError if `values` has a null where `field` allows none, at any depth: Arrow does not look into lists."""
    if not field.nullable and values.null_count:
        raise DatasetError(f"column {name} has {values.null_count} nulls and must have none")
    if pa.types.is_list(field.type):
        _require_values(f"{name}[]", field.type.value_field, values.flatten())
    elif pa.types.is_struct(field.type):
        for child, content in zip(field.type, values.drop_null().flatten(), strict=True):
            _require_values(f"{name}.{child.name}", child, content)
