"""Diff: what changed between two versions, and why datasets were recomputed.

Distributions are compared by the two-sample Kolmogorov-Smirnov statistic over rows. The responses
to a prompt are not independent, so the p-value counts prompts in place of rows, which can only make
it larger.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from wind.audit.changes import Change, Settings, changes, setting_changes
from wind.audit.lineage import chain
from wind.audit.recomputation import ComputedVersion, Recomputed, recomputed
from wind.errors import DatasetError, first_line
from wind.quantities import (
    IS_TRUNCATED,
    LOG_RATIO,
    OF_POLICY,
    RESPONSE_TOKENS,
    TIE_SHARE,
    Floats,
    effect_size,
    floats,
    ks_distance,
    tie_share_of_rewards,
)
from wind.records import Record
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.schemas import declared
from wind.store.versions import Version

# types that fit a machine word
NARROW = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Float32, pl.Float64, pl.Boolean)

OF_A_GROUP = ("step", "prompt_id", "drawn_from")
# The quantities of each dataset whose distributions are compared: those that an objective or a data
# check looks at.
QUANTITIES: dict[str, dict[str, pl.Expr]] = {
    "generations": {"response_tokens": RESPONSE_TOKENS, "truncated_share": IS_TRUNCATED},
    "rewards": {"reward": pl.col("reward")},
    "win_rates": {"win_rate": pl.col("win_rate"), "tie_share": TIE_SHARE},
    "logps": {"log_ratio": LOG_RATIO},
    "rollouts": {
        "reward": pl.col("reward"),
        "response_tokens": RESPONSE_TOKENS,
        "win_rate": pl.col("win_rate"),
        "tie_share": tie_share_of_rewards(*OF_A_GROUP),
        "log_ratio": LOG_RATIO,
    },
    "evaluation": {
        "reward": pl.col("reward_policy"),
        "response_tokens": pl.col("response_tokens_policy"),
        "win_rate": pl.col("win_rate"),
        "tie_share": pl.col("tie_share"),
        "log_ratio": LOG_RATIO,
    },
}


class Shift(Record):
    """How far the distribution of a quantity over rows moved."""

    quantity: str
    before: float  # mean
    after: float
    # Kolmogorov-Smirnov: the largest distance of the two distribution functions, in [0, 1]
    statistic: float
    p_value: float  # of the same distribution, prompts counted in place of rows
    # difference of the means in pooled standard deviations; infinite between two constants
    effect: float


class DatasetDifference(Record):
    """The differences between the rows of two datasets."""

    name: str
    before: Dataset | None
    after: Dataset | None
    same: bool
    added: int = 0  # rows whose key is new
    removed: int = 0
    changed: int = 0  # rows with the same key and a different value
    columns: dict[str, int] = {}  # by column: how many of the changed rows differ in it
    other_columns: list[str] = []  # columns that only one side has
    shifts: list[Shift] = []
    damage: str | None = None  # why the rows could not be compared


class Aligned(Record):
    """The metrics of one iteration of two runs."""

    iteration: int
    before: str  # RUN@NUMBER
    after: str
    metrics: list[Change]


class Difference(Record):
    """The differences between the versions `before` and `after`."""

    before: str  # RUN@NUMBER
    after: str
    config: list[Change]
    # source digests of the modules; only of datasets whose modules both sides recorded
    modules: list[Change]
    packages: list[Change]
    git_revision: Change | None
    datasets: list[DatasetDifference]
    models: list[Change]  # fingerprints
    metrics: list[Change]  # value, low, high, n; every metric that either side has
    recomputed: list[Recomputed]
    iterations: list[Aligned] = []


def difference(
    store: Store, before: Version, after: Version, *, aligned: bool = False
) -> Difference:
    """Compare two versions.

    With `aligned`, the metrics of all iterations that both runs have are compared as well.
    """
    ours, theirs = ComputedVersion(store, before), ComputedVersion(store, after)
    both = [
        name
        for name in ours.computations
        if ours.knows_modules(name) and theirs.knows_modules(name)
    ]
    revisions = ours.provenance("git_revision"), theirs.provenance("git_revision")
    return Difference(
        before=_name(before),
        after=_name(after),
        config=list(setting_changes(_settings(before), _settings(after))),
        modules=list(changes(ours.modules(both), theirs.modules(both))),
        packages=list(changes(ours.packages(), theirs.packages())),
        git_revision=Change(name="git_revision", before=revisions[0], after=revisions[1])
        if revisions[0] != revisions[1]
        else None,
        datasets=[
            _rows(store, name, ours.datasets.get(name), theirs.datasets.get(name))
            for name in dict.fromkeys([*ours.datasets, *theirs.datasets])
        ],
        models=[
            Change(
                name=name,
                before=getattr(before.content, name).fingerprint,
                after=getattr(after.content, name).fingerprint,
            )
            for name in ("model_in", "model_out", "reference")
        ],
        metrics=_metrics(before, after),
        recomputed=list(recomputed(ours, theirs)),
        iterations=_aligned(store, before, after) if aligned else [],
    )


def row_changes(store: Store, name: str, before: Dataset, after: Dataset) -> DatasetDifference:
    """Compare the rows of two datasets, joined by key.

    Raises DatasetError if either cannot be read.
    """
    key = list(declared(after.name).key)
    schemas = [store.open(handle).schema for handle in (before, after)]
    values = [
        column for column in schemas[1].names if column in schemas[0].names and column not in key
    ]
    frames = []
    for handle, side in ((before, "before"), (after, "after")):
        rows = pl.scan_pyarrow_dataset(store.open(handle)).select(*key, *values)
        kinds = rows.collect_schema()
        # Texts, token ids and records are long. Values that differ have different hashes, and a
        # hash fits a machine word.
        compact = [
            pl.col(column) if kinds[column] in NARROW else pl.col(column).hash()
            for column in values
        ]
        frames.append(
            rows.select(
                *key,
                *(column.name.suffix(f" {side}") for column in compact),
                pl.lit(True).alias(side),
            )
        )
    differs = {
        column: pl.col(f"{column} before").ne_missing(pl.col(f"{column} after"))
        for column in values
    }
    is_in_both = pl.col("before").is_not_null() & pl.col("after").is_not_null()
    counts = (
        frames[0]
        .join(frames[1], on=key, how="full", coalesce=True)
        .select(
            pl.col("before").is_null().sum().alias(" added"),
            pl.col("after").is_null().sum().alias(" removed"),
            (is_in_both & pl.any_horizontal(pl.lit(False), *differs.values()))
            .sum()
            .alias(" changed"),
            *((is_in_both & differ).sum().alias(column) for column, differ in differs.items()),
        )
    )
    (row,) = _collected(counts, before, after).to_dicts()
    return DatasetDifference(
        name=name,
        before=before,
        after=after,
        same=before == after,
        added=row[" added"],
        removed=row[" removed"],
        changed=row[" changed"],
        columns={column: row[column] for column in values if row[column]},
        other_columns=sorted(set(schemas[0].names) ^ set(schemas[1].names)),
        shifts=shifts(store, before, after),
    )


def shifts(store: Store, before: Dataset, after: Dataset) -> list[Shift]:
    """Measure how far the quantities of a dataset moved.

    Empty if the dataset has no such quantities, or no rows.
    """
    quantities = QUANTITIES.get(after.name, {})
    if not quantities or not before.rows or not after.rows:
        return []
    of_policy = OF_POLICY if after.name == "rollouts" else pl.lit(True)
    sides = []
    for handle in (before, after):
        rows = pl.scan_pyarrow_dataset(store.open(handle)).filter(of_policy)
        named = (quantity.alias(name) for name, quantity in quantities.items())
        sides.append(_collected(rows.select("prompt_id", *named), before, after))
    prompts, others = (side["prompt_id"].n_unique() for side in sides)
    return [
        _shift(name, floats(sides[0][name]), floats(sides[1][name]), prompts, others)
        for name in quantities
    ]


def _rows(
    store: Store, name: str, before: Dataset | None, after: Dataset | None
) -> DatasetDifference:
    if before is None or after is None or before == after:
        return DatasetDifference(name=name, before=before, after=after, same=before == after)
    try:
        return row_changes(store, name, before, after)
    except DatasetError as error:
        return DatasetDifference(
            name=name, before=before, after=after, same=False, damage=str(error)
        )


def _shift(quantity: str, before: Floats, after: Floats, prompts: int, others: int) -> Shift:
    from scipy import stats  # most of a second to import

    statistic = ks_distance(before, after)
    return Shift(
        quantity=quantity,
        before=float(before.mean()),
        after=float(after.mean()),
        statistic=statistic,
        p_value=float(
            stats.kstwobign.sf(statistic * np.sqrt(prompts * others / (prompts + others)))
        ),
        effect=effect_size(before, after),
    )


def _metrics(before: Version, after: Version) -> list[Change]:
    names = dict.fromkeys([*before.metrics, *after.metrics])
    return [
        Change(name=name, before=before.metrics.get(name), after=after.metrics.get(name))
        for name in names
    ]


def _aligned(store: Store, before: Version, after: Version) -> list[Aligned]:
    theirs = {version.content.iteration: version for version in chain(store, after)}
    pairs = [(version, theirs.get(version.content.iteration)) for version in chain(store, before)]
    return [
        Aligned(
            iteration=ours.content.iteration,
            before=_name(ours),
            after=_name(other),
            metrics=_metrics(ours, other),
        )
        for ours, other in pairs
        if other is not None
    ]


def _collected(rows: pl.LazyFrame, before: Dataset, after: Dataset) -> pl.DataFrame:
    try:
        return rows.collect(engine="streaming")
    except (pa.ArrowInvalid, OSError, pl.exceptions.PolarsError) as error:
        line = first_line(error)
        raise DatasetError(
            f"{label(before)} and {label(after)} cannot be compared: {line}; run `wind verify`"
        ) from error


def _settings(version: Version) -> Settings:
    return version.content.recipe, version.content.defaults


def _name(version: Version) -> str:
    return f"{version.run}@{version.number}"
