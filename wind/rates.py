"""Convergence rates and floors of the bandit study, one number per row.

With KL for KL(pi* || pi), averaged over repetitions where there are several:

`contraction`
    geometric mean of KL_{t+1} / KL_t from the reference until the KL is within twice the floor, or
    below 1e-10
`contraction_proven`
    1 / (1 + beta eta), for the exact update with eta <= 4 beta (MATH 2.5)
`floor`
    mean KL over the last third of the iterations, with its standard error over the repetitions
`win_rate`, `gap`, `kl_reference`
    means over the last third of the iterations, likewise
`generations_to_tenth`, `calls_to_tenth`
    what it took until the KL was a tenth of the reference's; no row if it never was
`slope_prompts`, `slope_samples`
    slope of log floor on log prompts at fixed samples, and the other way round; `prompts` or
    `samples` is then 0, because it varies; with `_upper`, over the three largest only

On the instance `floor`, runs start at the solution, so that their last third has no trace of a
start; its rows are the floors and their slopes.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from wind.bandit import FLOOR, FLOOR_ALGORITHMS
from wind.bandit.algorithms import proven_factor
from wind.config.bandit import BanditSection
from wind.stages import Place, Progress, Shard, Spec, Stage, main
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import SCHEMAS

RUN: Final = ("samples", "algorithm", "instance", "prompts")
# the fewest points whose slope has a standard error
UPPER: Final = 3
# nats; rounding errors may show in a KL below it
SMALLEST: Final = 1e-10

Floats = npt.NDArray[np.float64]


class RatesSpec(Spec):
    """The study, and the settings it was made with."""

    bandit: Dataset
    section: BanditSection


class Fit(NamedTuple):
    """The slope of a straight line and its standard error."""

    slope: float
    error: float


def slope(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Fit the least-squares slope of log y on log x.

    Its standard error is that of the residuals, with len(x) - 2 degrees of freedom.
    """
    log_x, log_y = np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64))
    centered = log_x - log_x.mean()
    value = float(centered @ log_y / (centered @ centered))
    residual = log_y - log_y.mean() - value * centered
    return Fit(value, float(np.sqrt(residual @ residual / (len(x) - 2) / (centered @ centered))))


def contraction(kl_T: Floats, floor: float) -> float | None:
    """Compute the mean factor by which the KL shrinks per iteration.

    It is the geometric mean of KL_{t+1} / KL_t from the start to the first KL within twice `floor`.
    None if that is the start.
    """
    reached = np.flatnonzero(kl_T <= max(2 * floor, SMALLEST))
    last = int(reached[0]) if len(reached) else len(kl_T) - 1
    return (
        float((max(kl_T[last], np.finfo(np.float64).tiny) / kl_T[0]) ** (1 / last))
        if last
        else None
    )


def settled(bandit: pl.DataFrame) -> pl.DataFrame:
    """Average each run's metrics over the last third of its iterations.

    The standard error is over repetitions. Groups keep their order: another would change the last
    digit of a sum.
    """
    late = bandit.filter(pl.col("iteration") > pl.col("iteration").max().over(*RUN) * 2 / 3)
    of_seeds = late.group_by(*RUN, "metric", "seed", maintain_order=True).agg(
        pl.col("value").mean()
    )
    return of_seeds.group_by(*RUN, "metric", maintain_order=True).agg(
        value=pl.col("value").mean(),
        error=pl.col("value").std() / pl.len().sqrt(),
        n=pl.len().cast(pl.Int64),
    )


def rates(bandit: pl.DataFrame, section: BanditSection) -> pl.DataFrame:
    """Compute the rows of `rates`, sorted by key, from those of `bandit`."""
    ends = settled(bandit.filter(pl.col("metric").is_in(["kl", "win_rate", "gap", "kl_reference"])))
    ends = ends.with_columns(quantity=pl.col("metric").replace({"kl": "floor"})).drop("metric")
    main = pl.col("instance") != FLOOR
    floors = ends.filter(~main & (pl.col("quantity") == "floor"))
    frames = [ends.filter(main), floors, _slopes(floors, section)]
    rows = []
    means = (
        bandit.filter(main)
        .group_by(*RUN, "metric", "iteration", maintain_order=True)
        .agg(pl.col("value").mean())
    )
    for run, frame in means.partition_by(*RUN, as_dict=True).items():
        paths = {
            str(metric): path["value"].to_numpy()
            for (metric,), path in frame.partition_by("metric", as_dict=True).items()
        }
        rows += [
            (*run, quantity, value, None, 1) for quantity, value in _of_path(run, paths, section)
        ]
    empty = pl.DataFrame(SCHEMAS["rates"].empty_table())
    found = pl.DataFrame(rows, schema=empty.schema, orient="row")
    columns = SCHEMAS["rates"].names
    return pl.concat([found, *(frame.select(columns).cast(empty.schema) for frame in frames)]).sort(
        *RUN, "quantity"
    )


def _of_path(
    run: tuple[object, ...], paths: dict[str, Floats], section: BanditSection
) -> list[tuple[str, float]]:
    samples, algorithm, *_ = run
    kl_T = paths["kl"]
    last_third = np.arange(len(kl_T)) > (len(kl_T) - 1) * 2 / 3
    found = [("contraction", contraction(kl_T, float(kl_T[last_third].mean()) if samples else 0.0))]
    if not samples:
        found.append(
            ("contraction_proven", proven_factor(str(algorithm), section.beta, section.eta))
        )
    else:
        reached = np.flatnonzero(kl_T <= kl_T[0] / 10)
        if len(reached):
            found += [
                (f"{name}_to_tenth", float(paths[name][reached[0]]))
                for name in ("generations", "calls")
            ]
    return [(quantity, value) for quantity, value in found if value is not None]


def _slopes(floors: pl.DataFrame, section: BanditSection) -> pl.DataFrame:
    rows = []
    for algorithm in FLOOR_ALGORITHMS:
        of_algorithm = floors.filter(pl.col("algorithm") == algorithm)
        ways = (
            ("prompts", "samples", section.floor_at_samples, section.floor_prompts),
            ("samples", "prompts", section.floor_at_prompts, section.floor_samples),
        )
        for varied, fixed, at, over in ways:
            line = of_algorithm.filter((pl.col(fixed) == at) & pl.col(varied).is_in(over)).sort(
                varied
            )
            for part, points in (("", line), ("_upper", line.tail(UPPER))):
                fit = slope(points[varied].to_list(), points["value"].to_list())
                rows.append(
                    {
                        varied: 0,
                        fixed: at,
                        "algorithm": algorithm,
                        "instance": FLOOR,
                        "quantity": f"slope_{varied}{part}",
                    }
                    | {"value": fit.slope, "error": fit.error, "n": len(points)}
                )
    return pl.DataFrame(rows)


def _shards(spec: RatesSpec, store: Store) -> int:
    return 1


def _compute(spec: RatesSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    rows = rates(store.frame(spec.bandit), spec.section)
    progress(len(rows), len(rows))
    return Shard(rows.to_arrow())


def _numbers(spec: RatesSpec, table: pa.Table) -> dict[str, float]:
    """Return the slopes of the default WIND."""
    return {
        row["quantity"]: row["value"]
        for row in table.to_pylist()
        if row["algorithm"] == "wind" and "slope" in row["quantity"]
    }


STAGE = Stage(name="rates", spec=RatesSpec, shards=_shards, compute=_compute, numbers=_numbers)

if __name__ == "__main__":
    main("rates")
