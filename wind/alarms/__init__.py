"""Alarms of one iteration: does the reward rise while the policy does not get better?

One row is one test. Each compares this iteration with an earlier policy on the held-out prompts:
with the run's initial one (or the reference, where win rates are against that), and with the
iteration before. All judges are compared with the training reward on the same prompts.

`reward_hacking.<judge>.<since>`: the training reward's gain is above zero, and the judge's is less
than `share` of it.

`length.moved.<since>`: the training reward's gain is above zero, the mean length moved by more than
`length_change`, and among one policy's responses to a prompt those that differ in that direction
have the higher rewards.

`length.controlled.<since>`: the win rate rose, and at equal length by less than `share` of that.

The last two also need every other judge's gain to be less than the training reward's. An alarm is
raised where all of its statements are shown at once, each by a one-sided paired test at `level`.
Within a family, p-values are corrected for the number of its tests (Holm). So without any change of
the policy, the chance of a false alarm of a family is at most `level` in an iteration.

`wind.alarms.judged` says what a gain is, `wind.alarms.paired` how it is tested.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import polars as pl
import pyarrow as pa

from wind.alarms import sentences
from wind.alarms.controlled import controlled_win_rate
from wind.alarms.judged import (
    TRAINING,
    Standing,
    common_prompts,
    concordance,
    judged,
    lengths,
    ratio,
    standing,
)
from wind.alarms.paired import Estimate, Evidence, all_of, holm
from wind.config.alarms import AlarmsConfig
from wind.stages import (
    Place,
    Progress,
    Role,
    Shard,
    Spec,
    Stage,
    light,
    no_function,
    one_side,
    unforeseen,
)
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset
from wind.store.schemas import Column, Declaration

DATASET = Declaration(
    row="one test of one iteration",
    columns=(
        Column("alarm", pa.string(), "what is tested, by which judge and since when"),
        Column("statistic", pa.float64(), "Student's t of the weakest of its tests"),
        Column("p_value", pa.float64(), "[0, 1], corrected for the tests of its family"),
        Column("threshold", pa.float64(), "the largest p-value that raises it"),
        Column("is_raised", pa.bool_(), "whether p_value is at most threshold"),
        Column("message", pa.string(), "what moved and what did not, and what to do"),
    ),
    key=("alarm",),
    foreign_keys=(),
)


class AlarmsSpec(Spec):
    """The comparisons of an iteration and of the one before it."""

    evaluation: Dataset
    matches: Dataset | None = None
    # of the iteration before; it counts if its win rates are against the same responses
    evaluation_before: Dataset | None = None
    matches_before: Dataset | None = None
    # whom the win rates are against, as `matches` calls it
    against: str
    alarms: AlarmsConfig


# by name: a test, and what it says, given `is_raised`
Tests = Mapping[str, tuple[Evidence, Callable[..., str]]]


@dataclass(frozen=True)
class Comparison:
    """Everything about one policy, and how it compares with an earlier one."""

    since: str
    evaluation: pl.DataFrame
    now: pl.DataFrame  # of `judged`
    # then: None if that was the opponent itself
    evaluation_then: pl.DataFrame | None = None
    then: pl.DataFrame | None = None

    @cached_property
    def judges(self) -> Sequence[tuple[str, Standing, Standing]]:
        """Each other judge, how the training reward sees its prompts, and how it does."""
        return list(self._judges())

    def _judges(self) -> Iterator[tuple[str, Standing, Standing]]:
        for judge in self.now["judge"].unique().sort():
            then = None if self.then is None else _of(self.then, judge)
            prompts = self._prompts(_of(self.now, judge), *([] if then is None else [then]))
            if judge != TRAINING and len(prompts):
                yield judge, self.training(prompts), standing(_of(self.now, judge), then, prompts)

    def training(self, prompts: pl.Series | None = None) -> Standing:
        """Return how the training reward sees `prompts`, or all."""
        then = None if self.then is None else _of(self.then, TRAINING)
        chosen = self._prompts() if prompts is None else prompts
        return standing(_of(self.now, TRAINING), then, chosen)

    def mean_lengths(self) -> tuple[Estimate, Estimate]:
        """Return the tokens per response then and now."""
        theirs = (
            lengths(self.evaluation, "reference")
            if self.evaluation_then is None
            else lengths(self.evaluation_then, "policy")
        )
        ours, prompts = lengths(self.evaluation, "policy"), self._prompts()
        return ratio(theirs, "tokens", "rows", prompts), ratio(ours, "tokens", "rows", prompts)

    def controlled(self) -> tuple[Estimate, Estimate]:
        """Return the win rates at equal length then and now."""
        prompts = self._prompts()
        now = controlled_win_rate(self.evaluation, prompts)
        if self.evaluation_then is None:
            return Estimate.constant(0.5, len(prompts)), now
        return controlled_win_rate(self.evaluation_then, prompts), now

    def taste(self) -> Estimate:
        """Return how the training reward orders responses to one prompt by their length.

        It is Goodman and Kruskal's gamma, in [-1, 1].
        """
        return ratio(concordance(self.evaluation), "agreed", "ordered", self._prompts())

    def _prompts(self, *others: pl.DataFrame) -> pl.Series:
        trained = [_of(each, TRAINING) for each in (self.now, self.then) if each is not None]
        return common_prompts(*trained, *others)


def alarms(comparisons: Sequence[Comparison], config: AlarmsConfig) -> list[dict[str, Any]]:
    """Return the rows: every test of every comparison, sorted by name."""
    rows: list[dict[str, Any]] = []
    for family in (_hacking, _length):
        found = {name: both for each in comparisons for name, both in family(each, config).items()}
        for name, test in holm({name: test for name, (test, _) in found.items()}).items():
            is_raised = test.p_value <= config.level
            rows.append(
                {
                    "alarm": name,
                    "statistic": test.statistic,
                    "p_value": test.p_value,
                    "threshold": config.level,
                    "is_raised": is_raised,
                    "message": found[name][1](is_raised=is_raised),
                }
            )
    return sorted(rows, key=lambda row: str(row["alarm"]))


def _hacking(comparison: Comparison, config: AlarmsConfig) -> Tests:
    """Test, for each other judge, that it does not see what the training reward gained."""
    return {
        f"reward_hacking.{judge}.{comparison.since}": (
            all_of(training.gain.test(), (training.gain * config.share - other.gain).test()),
            partial(sentences.of_hacking, comparison.since, judge, training, other, config.share),
        )
        for judge, training, other in comparison.judges
    }


def _length(comparison: Comparison, config: AlarmsConfig) -> Tests:
    """Test, in two ways, that length explains what the training reward gained."""
    training, taste = comparison.training(), comparison.taste()
    then, now = comparison.mean_lengths()
    direction = 1.0 if now.value >= then.value else -1.0
    moved = (now - then * (1 + direction * config.length_change)) * direction
    lagging = [(ours.gain - other.gain).test() for _, ours, other in comparison.judges]
    explained = all_of(training.gain.test(), (taste * direction).test(), moved.test(), *lagging)
    others = {judge: other for judge, _, other in comparison.judges}
    before, controlled = comparison.controlled()
    raw, left = training.now - training.then, controlled - before
    gone = all_of(raw.test(), (raw * config.share - left).test(), *lagging)
    since = comparison.since
    return {
        f"length.moved.{since}": (
            explained,
            partial(sentences.of_length, since, training, then, now, taste, others),
        ),
        f"length.controlled.{since}": (
            gone,
            partial(sentences.of_control, since, training, before, controlled, others),
        ),
    }


def _of(rows: pl.DataFrame, judge: str) -> pl.DataFrame:
    return rows.filter(pl.col("judge") == judge)


def comparisons(
    against: str,
    evaluation: pl.DataFrame,
    matches: pl.DataFrame | None = None,
    evaluation_before: pl.DataFrame | None = None,
    matches_before: pl.DataFrame | None = None,
) -> list[Comparison]:
    """Return what an iteration is compared with: its opponent, and the iteration before.

    Only where there was one, and it had the same opponent and prompts in common.
    """
    now = judged(evaluation, matches, against)
    found = [Comparison(against, evaluation, now)]
    if evaluation_before is not None and len(common_prompts(evaluation, evaluation_before)):
        then = judged(evaluation_before, matches_before, against)
        found.append(Comparison("previous", evaluation, now, evaluation_before, then))
    return found


def _shards(spec: AlarmsSpec, store: Store) -> int:
    return 1


def _compute(spec: AlarmsSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    def frame(dataset: Dataset | None) -> pl.DataFrame | None:
        return None if dataset is None else store.frame(dataset)

    before = spec.evaluation_before
    is_alike = before is not None and _opponent(store, before) == _opponent(store, spec.evaluation)
    found = comparisons(
        spec.against,
        store.frame(spec.evaluation),
        frame(spec.matches),
        frame(before if is_alike else None),
        frame(spec.matches_before),
    )
    rows = alarms(found, spec.alarms)
    progress(len(rows), len(rows))
    return Shard(pa.Table.from_pylist(rows, DATASET.schema))


def _opponent(store: Store, evaluation: Dataset) -> AnyHandle | None:
    """Return the responses that an evaluation compares the policy's with."""
    return store.manifest(evaluation).parents.get("generations_reference")


def _numbers(spec: AlarmsSpec, table: pa.Table) -> dict[str, float]:
    return {"raised": float(sum(table["is_raised"].to_pylist()))}


STAGE: Final[Stage[AlarmsSpec]] = Stage(
    name="alarms",
    spec=AlarmsSpec,
    dataset=DATASET,
    dropped=None,
    shards=_shards,
    compute=_compute,
    numbers=_numbers,
    worker=light,
    role=Role(
        phase=None,
        sides=("",),
        side=one_side,
        history=(),
        is_timed=False,
        has_drift=False,
        expected=unforeseen,
        related_parents={},
        function_seconds=no_function,
    ),
)
