"""Ratings: the strength of a run's policies, iteration by iteration, under one judge.

Bradley-Terry ratings (`wind.statistics.bradley_terry`) of all iterations on the held-out prompts,
above the policy that the run began with. Under a reward that scores each response by itself, or
gold answers, any two iterations can be compared from what is stored, without new samples. A
pairwise reward compared each iteration with its opponents only: iterations are then tied together
by whom they met, including opponents that are no policy of the run, such as stored responses.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import numpy as np
import polars as pl

from wind.config.base import setting_of
from wind.errors import ConfigError, DatasetError
from wind.evaluation import win_rates_over
from wind.records import Record
from wind.statistics.bootstrap import generator_for
from wind.statistics.bradley_terry import ELO, bradley_terry
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset
from wind.store.schemas import SAMPLE
from wind.store.versions import Version

# An iteration, or the name of an opponent that is the same in all of them.
Player = int | str
# Two players, and of each prompt the first one's share of wins: prompt_id, share.
Meeting = tuple[Player, Player, pl.DataFrame]
SEEDS: Final = "rating"


class Rating(Record):
    """The rating of one iteration's policy, with its 95% interval over prompts."""

    # 0 is the policy that the run began with
    iteration: int
    # logits above the first policy, which beats it with probability sigmoid(rating)
    rating: float
    # None for the first policy, and where there are fewer than two prompts
    low: float | None
    high: float | None
    # the same in Elo points, 400 for odds of ten to one
    elo: float
    elo_low: float | None
    elo_high: float | None


def judges_of(version: Version) -> tuple[str, ...]:
    """Return the names of all judges of `version`: training, gold, and those of its recipe."""
    gold = ("gold",) if "accuracy" in version.metrics else ()
    return ("training", *gold, *(setting_of(version.content.recipe, "evaluation.judges") or {}))


def ratings(store: Store, versions: Sequence[Version], judge: str = "training") -> list[Rating]:
    """Rate the policies of `versions`, one run's in order, under `judge`.

    The first rating is that of the policy that the run began with, where the versions know its
    responses, and otherwise that of the first version. Raises ConfigError for a judge that a
    version does not have, or an iteration that nothing ties to the first; DatasetError if stored
    responses or rewards are gone.
    """
    for version in versions:
        if judge not in (known := judges_of(version)):
            raise ConfigError(
                f"{version.run}@{version.number} has no judge {judge!r}: it has {', '.join(known)}"
            )
    is_pairwise = judge != "gold" and _gives_preferences(store, versions[-1], judge)
    met = [*(_met if is_pairwise else _compared)(store, versions, judge)]
    iterations = sorted({player for pair in met for player in pair[:2] if isinstance(player, int)})
    others = sorted({player for pair in met for player in pair[:2] if isinstance(player, str)})
    players: list[Player] = [*iterations, *others]
    _refuse_untied(met, players, judge)
    recipe = versions[-1].content.recipe
    estimates = bradley_terry(
        [(players.index(first), players.index(second)) for first, second, _ in met],
        _shares([shares for _, _, shares in met]),
        len(players),
        int(setting_of(recipe, "evaluation.bootstrap_samples")),
        generator_for(int(recipe["seed"]), 0, f"{SEEDS}.{judge}"),
    )
    return [
        _rating(iteration, *estimate)
        for iteration, estimate in zip(iterations, estimates, strict=False)
    ]


def _rating(iteration: int, rating: float, low: float | None, high: float | None) -> Rating:
    elo, elo_low, elo_high = (
        None if value is None else value * ELO for value in (rating, low, high)
    )
    return Rating(
        iteration=iteration,
        rating=rating,
        low=low,
        high=high,
        elo=elo or 0.0,
        elo_low=elo_low,
        elo_high=elo_high,
    )


def _shares(shares: Sequence[pl.DataFrame]) -> Any:
    """Return the shares of all meetings, [P, C], NaN where two did not meet on a prompt."""
    named = [frame.rename({"share": str(place)}) for place, frame in enumerate(shares)]
    joined = named[0]
    for frame in named[1:]:
        joined = joined.join(frame, on="prompt_id", how="full", coalesce=True)
    columns = joined.sort("prompt_id").drop("prompt_id").cast(pl.Float64)
    return columns.fill_null(np.nan).to_numpy()


def _refuse_untied(met: Sequence[Meeting], players: Sequence[Player], judge: str) -> None:
    if not met:
        raise ConfigError(
            f"nothing to rate under {judge}: there is one policy, and it met no other"
        )
    tied = {players[0]}
    for _ in players:
        tied |= {player for pair in met if tied & {*pair[:2]} for player in pair[:2]}
    for player in players:
        if isinstance(player, int) and player not in tied:
            raise ConfigError(
                f"iteration {player} met no opponent under {judge} that ties it to iteration "
                f"{players[0]}: add to evaluation.opponents {{kind: policy, policy: initial}}"
            )


def _compared(store: Store, versions: Sequence[Version], judge: str) -> Iterator[Meeting]:
    """Compare all iterations with one another, by the rewards of their responses."""
    answers: dict[int, pl.DataFrame] = {}
    first = _first(store, versions[0], judge)
    if first is not None:
        answers[versions[0].content.iteration - 1] = first
    for version in versions:
        answers[version.content.iteration] = _answers(store, version, judge)
    for (one, ours), (other, theirs) in combinations(answers.items(), 2):
        wins = win_rates_over(theirs, ours)
        yield other, one, _by_prompt(wins)


def _met(store: Store, versions: Sequence[Version], judge: str) -> Iterator[Meeting]:
    """Yield the stored meetings of each iteration with its opponents."""
    for version in versions:
        iteration, against = version.content.iteration, _against(version)
        if "matches" in version.content.datasets:
            columns = ["judge", "opponent", "prompt_id", "win_rate"]
            rows = store.frame(version.content.datasets["matches"], columns).filter(judge=judge)
        else:
            evaluated = store.frame(version.content.datasets["evaluation"])
            rows = evaluated.select("prompt_id", "win_rate", opponent=pl.lit(against))
        for (name,), wins in rows.group_by("opponent", maintain_order=True):
            player = _player(version, str(name))
            if player is not None and player != iteration:
                yield iteration, player, _by_prompt(wins)


def _by_prompt(wins: pl.DataFrame) -> pl.DataFrame:
    return wins.group_by("prompt_id").agg(share=pl.col("win_rate").mean())


def _player(version: Version, opponent: str) -> Player | None:
    """Return whom `opponent` stands for in the iteration of `version`.

    None for a moving average, which is another policy in each.
    """
    recipe, iteration = version.content.recipe, version.content.iteration
    named: Mapping[str, Any] = setting_of(recipe, "evaluation.opponents") or {}
    policy = opponent
    if opponent != _against(version):
        if named[opponent]["kind"] != "policy":
            return opponent
        policy = named[opponent]["policy"]
    if policy == "reference":
        policy = setting_of(recipe, "reference.kind")
    return {"initial": 0, "previous": iteration - 1}.get(policy)


def _against(version: Version) -> str:
    return str(setting_of(version.content.recipe, "evaluation.against"))


def _gives_preferences(store: Store, version: Version, judge: str) -> bool:
    rewards = (
        version.content.datasets["eval_rewards"]
        if judge == "training"
        else _of_policy(_parents(store, version, "matches"), judge, version)
    )
    return "preferences" in store.open(rewards).schema.names


def _answers(store: Store, version: Version, judge: str) -> pl.DataFrame:
    """Return the responses of `version` with their rewards: key, response, reward."""
    if judge == "gold":
        return _right(store, version, "accuracy_policy")
    generations = version.content.datasets["eval_generations"]
    if judge == "training":
        return _rewarded(store, generations, version.content.datasets["eval_rewards"])
    parents = _parents(store, version, "matches")
    return _rewarded(store, generations, _of_policy(parents, judge, version))


def _first(store: Store, version: Version, judge: str) -> pl.DataFrame | None:
    """Return the same of the policy before `version`, if it was one of its opponents."""
    before = version.content.iteration - 1
    against = _against(version)
    is_against = _player(version, against) == before
    if judge == "gold" and is_against:
        return _right(store, version, "accuracy_reference")
    if judge == "training" and is_against:
        parents = _parents(store, version, "evaluation")
        return _rewarded(store, parents["generations_reference"], parents["rewards_reference"])
    if "matches" not in version.content.datasets:
        return None
    parents = _parents(store, version, "matches")
    named = [against, *(setting_of(version.content.recipe, "evaluation.opponents") or {})]
    name = next((each for each in named if _player(version, each) == before), None)
    rewards = f"rewards_opponent.{name}.{judge}"
    if rewards not in parents:
        return None
    return _rewarded(store, parents[f"generations.{name}"], parents[rewards])


def _right(store: Store, version: Version, accuracy: str) -> pl.DataFrame:
    """Return accuracies as rewards. Equal ones tie, so the text does not matter."""
    rows = store.frame(version.content.datasets["evaluation"], [*SAMPLE, accuracy])
    return rows.drop_nulls().select(
        *SAMPLE, response=pl.col(accuracy).cast(pl.String), reward=accuracy
    )


def _rewarded(store: Store, generations: AnyHandle, rewards: AnyHandle) -> pl.DataFrame:
    assert isinstance(generations, Dataset)
    assert isinstance(rewards, Dataset)
    return store.frame(generations, [*SAMPLE, "response"]).join(
        store.frame(rewards, [*SAMPLE, "reward"]), on=SAMPLE, how="inner", validate="1:1"
    )


def _of_policy(parents: Mapping[str, AnyHandle], judge: str, version: Version) -> Dataset:
    """Return the rewards of the policy's responses under `judge`."""
    for name, handle in parents.items():
        parts = name.split(".")
        if parts[0] == "rewards_policy" and parts[-1] == judge and isinstance(handle, Dataset):
            return handle
    raise DatasetError(f"{version.run}@{version.number} has no rewards under {judge}: run it again")


def _parents(store: Store, version: Version, dataset: str) -> Mapping[str, AnyHandle]:
    handle = version.content.datasets.get(dataset)
    return {} if handle is None else store.manifest(handle).parents
