"""The contextual-bandit study: algorithms on finite games with known solutions.

Every algorithm runs exactly and on samples (MATH 2.10). One row is one number of one algorithm on
one instance at one iteration. Exact algorithms have `samples` 0 and see all responses. The others
draw, in every iteration, `samples` responses for each of `prompts` prompts (every prompt of the
instance equally often), and fit a tabular softmax policy to them: `wind.bandit.sampling`. `seed`
numbers repetitions: same games, other draws. The instance `floor` is one more random game, on which
prompts and samples vary over a wide range for the error floor; runs start at its solution, all
others at the reference.

Metrics are means over the prompts of the instance, in nats where they are divergences: `kl` is
KL(pi* || pi_t) from the solution of the regularized game, `gap` the regularized duality gap of one
side, `win_rate` that against the reference, `kl_reference` KL(pi_t || pi_ref), `entropy` that of
pi_t; `kl_own` of an exact algorithm that tends elsewhere is its KL(target || pi_t). `generations`
and `calls` count, from the first iteration on, the responses drawn and the judgments asked for:
rewards, or duels of pairs.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from wind.config.bandit import BanditSection
from wind.stages import Place, Progress, Shard, Spec, Stage
from wind.store.datasets import Store
from wind.store.schemas import Column, Declaration

DATASET = Declaration(
    row="one number of one algorithm on one bandit instance at one iteration",
    columns=(
        Column("samples", pa.int32(), "responses drawn per prompt; 0: the algorithm is exact"),
        Column("algorithm", pa.string(), "of `wind.bandit.algorithms`"),
        Column("instance", pa.string(), "of `wind.bandit.instances`"),
        Column("prompts", pa.int32(), "asked per iteration"),
        Column("seed", pa.int32(), "0 .. repetitions - 1"),
        Column("iteration", pa.int32(), "0 is the reference"),
        Column("metric", pa.string(), "what is measured"),
        Column("value", pa.float64(), "mean over the prompts of the instance"),
    ),
    key=("samples", "algorithm", "instance", "prompts", "seed", "iteration", "metric"),
    foreign_keys=(),
)

# the instance on which the error floor is measured
FLOOR: Final = "floor"
FLOOR_ALGORITHMS: Final = (
    "wind",
    "wind_centred",
    "wind_self_counting",
    "wind_centred_leave_one_out",
)


class BanditSpec(Spec):
    """The sizes of the study and its seed."""

    bandit: BanditSection
    seed: int


def _shards(spec: BanditSpec, store: Store) -> int:
    from wind.bandit.study import parts  # torch: seconds to import

    return len(parts(spec.bandit))


def _compute(spec: BanditSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    from wind.bandit.study import part_rows, parts

    part = parts(spec.bandit)[index]
    rows = sorted((*part, *row) for row in part_rows(*part, spec.bandit, spec.seed, progress))
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Shard(pa.table(columns, names=DATASET.schema.names))


def _numbers(spec: BanditSpec, table: pa.Table) -> dict[str, float]:
    """Return the number of algorithms and exact WIND's largest final distance.

    The distance is KL(pi* || pi) at the last iteration, in nats.
    """
    from wind.bandit.study import exact_iterations

    is_last = pc.field("iteration") == exact_iterations(spec.bandit)
    is_exact_wind = (
        (pc.field("algorithm") == "wind")
        & (pc.field("samples") == 0)
        & (pc.field("metric") == "kl")
    )
    distances = table.filter(is_exact_wind & is_last)["value"]
    return {
        "algorithms": float(pc.count_distinct(table["algorithm"]).as_py()),
        "exact_wind_kl": pc.max(distances).as_py(),
    }


STAGE: Final[Stage[BanditSpec]] = Stage(
    name="bandit",
    spec=BanditSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=lambda spec: "transformers",
    role=None,
)
