"""Ratings of a run: by hand, by rewards or by what was matched, and what cannot be tied."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from wind.audit.ratings import judges_of, ratings
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.schemas import declared
from wind.store.versions import Content, Version

PROMPTS = 200
MODEL = Model(fingerprint="0" * 64, parameters=1)
LOG3 = math.log(3)


class Shelf:
    """Datasets of made-up versions, each published once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.made = 0

    def publish(
        self,
        name: str,
        columns: Mapping[str, Any],
        parents: Mapping[str, AnyHandle] | None = None,
        schema: pa.Schema | None = None,
    ) -> Dataset:
        self.made += 1
        known = schema or declared(name).schema
        fill = {"string": "", "int32": 1, "int64": 1, "double": -1.0, "bool": False}
        rows = len(next(iter(columns.values())))
        whole = {
            field.name: columns.get(field.name, [fill.get(str(field.type), [])] * rows)
            for field in known
        }
        with self.store.partial(name, f"{self.made:064x}") as partial:
            partial.write(0, pa.table(whole), known)
            return partial.publish(
                1, parents=dict(parents or {}), computed_by={}, numbers={}, provenance={}
            )

    def sampled(self, rewards: Sequence[float]) -> tuple[Dataset, Dataset]:
        """One response to each prompt, no two of them equal, and its reward."""
        self.made += 1
        texts = [f"{self.made}.{index}" for index in range(len(rewards))]
        generations = self.publish("generations", keys(rewards) | {"response": texts})
        return generations, self.publish("rewards", keys(rewards) | {"reward": rewards})

    def version(
        self,
        iteration: int,
        datasets: Mapping[str, Dataset],
        opponents: Mapping[str, Any] | None = None,
        metrics: Sequence[str] = (),
    ) -> Version:
        evaluation = {"against": "initial", "bootstrap_samples": 100}
        evaluation |= {"judges": {"other": {"kind": "pairwise"}}, "opponents": opponents or {}}
        recipe = {"seed": 0, "evaluation": evaluation, "reference": {"kind": "initial"}}
        content = Content(
            iteration=iteration,
            recipe=recipe,
            datasets=dict(datasets),
            model_in=MODEL,
            model_out=MODEL,
            reference=MODEL,
            previous=None,
        )
        return Version(
            id=content.id(),
            run="run",
            number=iteration,
            content=content,
            checks={},
            metrics={name: {} for name in metrics},
            seconds={},
            published=0.0,
        )


def keys(values: Sequence[Any]) -> dict[str, Any]:
    return {
        "prompt_id": [f"{index:04d}" for index in range(len(values))],
        "sample_index": [0] * len(values),
    }


@pytest.fixture
def shelf(store: Store) -> Shelf:
    return Shelf(store)


def test_any_two_iterations_compare_under_a_reward(shelf: Shelf) -> None:
    """Both iterations beat the first policy on 3 of 4 prompts, and tie with each other."""
    first = shelf.sampled([0.0] * PROMPTS)
    wins = [1.0, 1.0, 1.0, -1.0] * (PROMPTS // 4)
    versions = []
    for iteration in (1, 2):
        generations, rewards = shelf.sampled(wins)
        parents = {"generations_reference": first[0], "rewards_reference": first[1]}
        right = [1.0, 0.0] * (PROMPTS // 2)
        accuracies = {"accuracy_policy": right, "accuracy_reference": [0.0] * PROMPTS}
        evaluation = shelf.publish("evaluation", keys(wins) | accuracies, parents)
        datasets = {"eval_generations": generations, "eval_rewards": rewards}
        versions.append(
            shelf.version(iteration, datasets | {"evaluation": evaluation}, metrics=["accuracy"])
        )
    assert judges_of(versions[0]) == ("training", "gold", "other")
    zero, one, two = ratings(shelf.store, versions)
    assert (zero.iteration, zero.rating, zero.low, zero.elo) == (0, 0.0, None, 0.0)
    assert one.rating == pytest.approx(LOG3, abs=5e-3)
    assert two.rating == pytest.approx(LOG3, abs=5e-3)
    assert one.elo == pytest.approx(400 * math.log10(3), abs=1)
    assert one.low is not None
    assert one.high is not None
    assert 0 < one.low < LOG3 < one.high
    assert (one.elo_low or 0) / one.low == pytest.approx(400 / math.log(10))
    # right against wrong wins, wrong against wrong ties: 3 of 4 once more
    gold = [rating.rating for rating in ratings(shelf.store, versions, "gold")]
    assert gold == pytest.approx([0, LOG3, LOG3], abs=5e-3)
    # without the first one, the second is compared with the initial policy no longer
    (alone,) = [rating for rating in ratings(shelf.store, versions[:1]) if rating.iteration]
    assert alone.rating == pytest.approx(LOG3, abs=5e-3)
    with pytest.raises(ConfigError, match=r"^run@1 has no judge 'nobody': it has training, gold"):
        ratings(shelf.store, versions, "nobody")


def matched(shelf: Shelf, iteration: int, win_rates: Mapping[str, float]) -> Version:
    """A version whose pairwise judge `other` gave these win rates on every prompt."""
    frames = [
        pl.DataFrame(
            {"judge": ["other"] * PROMPTS, "opponent": [name] * PROMPTS}
            | keys([0] * PROMPTS)
            | {"win_rate": [value] * PROMPTS}
        )
        for name, value in sorted(win_rates.items())
    ]
    preferences = declared("rewards").with_optional_columns()
    rewards = shelf.publish("rewards", keys([0]) | {"reward": [0.5]}, schema=preferences)
    matches = shelf.publish(
        "matches",
        pl.concat(frames).to_dict(as_series=False),
        {"rewards_policy.initial.other": rewards},
    )
    opponents = {
        "before": {"kind": "policy", "policy": "previous"},
        "gpt": {"kind": "responses"},
    }
    return shelf.version(iteration, {"matches": matches}, opponents)


def test_a_pairwise_judge_ties_iterations_by_whom_they_met(shelf: Shelf) -> None:
    """Of 9 in 10 the odds are 9, and so log 9 is twice log 3."""
    versions = [
        matched(shelf, 1, {"initial": 0.75, "before": 0.75}),
        matched(shelf, 2, {"initial": 0.9, "before": 0.75, "gpt": 0.5}),
        matched(shelf, 3, {"gpt": 0.75}),
    ]
    rated = ratings(shelf.store, versions, "other")
    assert [rating.iteration for rating in rated] == [0, 1, 2, 3]
    # gpt is as good as iteration 2, and iteration 3 beats it by log 3
    expected = [0, LOG3, 2 * LOG3, 3 * LOG3]
    assert [rating.rating for rating in rated] == pytest.approx(expected, abs=0.05)


def test_an_iteration_that_nothing_ties_to_the_first_is_named(shelf: Shelf) -> None:
    versions = [matched(shelf, 1, {"initial": 0.75}), matched(shelf, 2, {"gpt": 0.5})]
    with pytest.raises(
        ConfigError,
        match=r"^iteration 2 met no opponent under other that ties it to iteration 0: add to "
        r"evaluation\.opponents \{kind: policy, policy: initial\}$",
    ):
        ratings(shelf.store, versions, "other")
