"""Differences between two versions: what is other, and why each dataset was computed anew.

A dataset is computed anew if, and only if, a part of its key changed: an input, a field of its
spec, or the source of a module that computes it; `reasons` names those parts, of a computation that
was made and of a job that is planned alike.

Distributions are compared by the two-sample Kolmogorov-Smirnov statistic over rows. The responses
to a prompt are not independent, so its p-value counts prompts in place of rows, which can only make
it larger.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from wind.audit.lineage import chain, named, used
from wind.code.observed import Observed
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
from wind.stages import Job
from wind.store.computations import Computation, computation_of
from wind.store.datasets import Store
from wind.store.handles import Dataset, label
from wind.store.schemas import declared
from wind.store.versions import Version, Versions

HEX = re.compile(r"^[0-9a-f]{32,64}$")
SHOWN = 60  # characters of a value in a reason
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


class Change(Record):
    """A value that is other; None where there is none."""

    name: str
    before: Any
    after: Any


class Shift(Record):
    """How the distribution of a quantity over rows moved."""

    quantity: str
    before: float  # mean
    after: float
    # Kolmogorov-Smirnov: the largest distance of the two distribution functions, in [0, 1]
    statistic: float
    p_value: float  # of the same distribution, prompts counted in place of rows
    # difference of the means in pooled standard deviations; infinite between two constants
    effect: float


class DatasetDifference(Record):
    """How the rows of a dataset differ."""

    name: str
    before: Dataset | None
    after: Dataset | None
    same: bool
    added: int = 0  # rows whose key is new
    removed: int = 0
    changed: int = 0  # rows of the same key with another value
    columns: dict[str, int] = {}  # how many of the rows in both have another value there
    other_columns: list[str] = []  # that only one of the two has
    shifts: list[Shift] = []
    damage: str | None = None  # why the rows could not be compared


class Recomputed(Record):
    """A dataset that was computed by another computation than before."""

    dataset: str
    why: list[str]


class Aligned(Record):
    """The metrics of one iteration of two runs."""

    iteration: int
    before: str  # RUN@NUMBER
    after: str
    metrics: list[Change]


class Difference(Record):
    """How the version `after` differs from `before`."""

    before: str  # RUN@NUMBER
    after: str
    config: list[Change]
    modules: list[Change]  # digest of the source of each module that computed a dataset of both
    packages: list[Change]
    git_revision: Change | None
    datasets: list[DatasetDifference]
    models: list[Change]  # fingerprints
    metrics: list[Change]  # value, low, high, n; all that either has
    recomputed: list[Recomputed]
    iterations: list[Aligned] = []


def difference(
    store: Store, before: Version, after: Version, *, aligned: bool = False
) -> Difference:
    """What differs between two versions; `aligned`: with the metrics of the iterations that both
    runs have.
    """
    ours, theirs = Side(store, before), Side(store, after)
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
        recomputed=list(_recomputed(ours, theirs)),
        iterations=_aligned(store, before, after) if aligned else [],
    )


def newest(store: Store, run: str, iteration: int | None) -> "Side | None":
    """The version of `run` that a plan is compared with: of that iteration the one that `latest`
    goes on from, else the last.
    """
    versions = Versions(store, run)
    published = list(versions)
    tagged = versions.tagged("latest")
    known = [*published, *(chain(store, tagged) if tagged else [])]
    of_iteration = [
        version for version in known if iteration is None or version.content.iteration == iteration
    ]
    return Side(store, of_iteration[-1]) if of_iteration else None


def reasons(before: Computation | None, after: Computation | Job) -> list[str]:
    """What is other in `after`: fields of the spec, modules, inputs, then what was observed to be
    used; empty if nothing is.
    """
    if before is None:
        return ["never computed"]
    if before.stage != after.stage:
        return [f"computed by the stage {after.stage} in place of {before.stage}"]
    inputs, fields = [], []
    for change in changes(before.spec, after.spec):
        if _is_handle(change.before) or _is_handle(change.after):
            inputs.append(f"input {change.name} changed")
        else:
            fields.append(f"{change.name} {_shown(change.before)} -> {_shown(change.after)}")
    if before.modules and after.modules:
        code = [
            f"code of {change.name} {_verb(change)}"
            for change in changes(before.modules, after.modules)
        ]
    else:
        code = ["code changed"] if before.code != after.code else []
    used = (
        _used_otherwise(before.observed, after.observed) if isinstance(after, Computation) else []
    )
    return fields + code + inputs + used


def _used_otherwise(before: Observed, after: Observed) -> list[str]:
    return [
        f"{prefix}{change.name} {_verb(change)}"
        for prefix, then, now in (
            ("", before.files, after.files),
            ("variable ", before.variables, after.variables),
        )
        for change in changes(then, now)
    ]


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[Change]:
    """The values that differ, by dotted name; a handle is one value. What only one side has is None
    on the other.
    """
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if (
            isinstance(old, dict)
            and isinstance(new, dict)
            and not _is_handle(old)
            and not _is_handle(new)
        ):
            yield from changes(old, new, f"{prefix}{name}.")
        elif old != new:
            yield Change(name=f"{prefix}{name}", before=old, after=new)


# a recipe, and the dotted names of what it has at its defaults
Settings = tuple[Mapping[str, Any], Collection[str]]


def setting_changes(before: Settings, after: Settings) -> Iterator[Change]:
    """The settings that differ. One that only one has, at its default, is another release's, and
    changes nothing.
    """
    for change in changes(before[0], after[0]):
        if not _is_added(change.name, before, after) and not _is_added(change.name, after, before):
            yield change


def _is_added(name: str, without: Settings, within: Settings) -> bool:
    """Whether the first recipe has no setting of that name, and the second has it at its default."""
    parts = name.split(".")
    section: Any = without[0]
    for part in parts[:-1]:
        section = section.get(part, {})
    return parts[-1] not in section and any(
        ".".join(parts[: end + 1]) in within[1] for end in range(len(parts))
    )


def _settings(version: Version) -> Settings:
    return version.content.recipe, version.content.defaults


def row_changes(store: Store, name: str, before: Dataset, after: Dataset) -> DatasetDifference:
    """The rows of `after` against those of `before`, joined by key. Raises DatasetError if one of
    them cannot be read.
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
        # Texts, token ids and records are long: what differs in them differs in their hash, and the
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
    """How the telling quantities of a dataset moved; none where it has no such quantity, or no
    rows.
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


class Side:
    """A version and the computations that it came by."""

    def __init__(self, store: Store, version: Version) -> None:
        self.datasets = named(store, version)
        self._keys = used(store, [version])
        self._version = version
        self._store = store
        self.computations = {
            name: found for name in self.datasets if (found := self._computation(name)) is not None
        }

    def knows_modules(self, dataset: str) -> bool:
        """Whether the record of the computation of `dataset` tells its modules: a manifest does
        not.
        """
        return dataset in self.computations and bool(self.computations[dataset].modules)

    def modules(self, datasets: Iterable[str]) -> dict[str, str]:
        """The digest of the source of every module that computed one of `datasets`."""
        return {
            name: value
            for each in datasets
            for name, value in sorted(self.computations[each].modules.items())
        }

    def packages(self) -> dict[str, str]:
        """The version of every package; several, where datasets were computed with several."""
        found: dict[str, set[str]] = {}
        for each in self.computations.values():
            here = {
                "python": each.provenance.get("python", ""),
                **each.provenance.get("packages", {}),
            }
            for name, version in here.items():
                found.setdefault(name, set()).add(str(version))
        return {
            name: ", ".join(sorted(filter(None, versions)))
            for name, versions in sorted(found.items())
        }

    def provenance(self, name: str) -> str | None:
        """What the computations say of `name`, several values one after the other."""
        values = {
            str(each.provenance[name])
            for each in self.computations.values()
            if name in each.provenance
        }
        return ", ".join(sorted(values)) or None

    def _computation(self, name: str) -> Computation | None:
        """The computation of the dataset called `name`; None where it is not known, or was there
        for another dataset.
        """
        handle = self.datasets[name]
        try:
            found = computation_of(
                self._store, handle, self._version.computations.get(name, self._keys.get(handle))
            )
        except DatasetError:
            return None
        return found if found is not None and found.dataset == handle else None


def _recomputed(before: Side, after: Side) -> Iterator[Recomputed]:
    for name, computation in after.computations.items():
        old = before.computations.get(name)
        if old is None or old.key() != computation.key() or old.modules != computation.modules:
            if why := reasons(old, computation):
                yield Recomputed(dataset=name, why=why)
        elif before.datasets[name] != after.datasets[name]:
            yield Recomputed(
                dataset=name,
                why=["computed again from the same, with other content: it is not deterministic"],
            )


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


def _is_handle(value: Any) -> bool:
    return isinstance(value, dict) and "fingerprint" in value


def _shown(value: Any) -> str:
    if isinstance(value, str) and HEX.fullmatch(value):
        return value[:12]
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _verb(change: Change) -> str:
    return "added" if change.before is None else "removed" if change.after is None else "changed"


def _name(version: Version) -> str:
    return f"{version.run}@{version.number}"
