"""Mixes: several rewards in one, each of them a column."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field

from wind.config.models import InferenceConfig
from wind.config.rewards import MixRewardConfig, mixed_names
from wind.errors import ConfigError
from wind.rewards.columns import DATASET, PREFERENCES
from wind.rewards.functions import Responses
from wind.rewards.kinds.base import Judge, RewardKind, called
from wind.rewards.kinds.single import SINGLES, Single, SingleReward
from wind.rewards.mix import Mixture
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.handles import AnyHandle


class Mix(RewardKind):
    """Several rewards by name, and how they are combined."""

    kind: Literal["mix"] = "mix"
    rewards: dict[str, SingleReward]
    combine: Literal["sum", "min", "standardized"] = "sum"
    # other than 1
    weights: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def resolve(cls, store: Store, config: MixRewardConfig) -> Self:
        """Resolve each reward; raise ConfigError for one with the name of another column."""
        taken = DATASET.with_optional_columns().names
        rewards = {}
        for name, section in config.rewards.items():
            if name in taken:
                raise ConfigError(
                    f"reward.rewards.{name} has the name of a column of rewards: choose another"
                )
            with called(f"reward.rewards.{name}", section.kind):
                rewards[name] = SINGLES[section.kind](store, section)
        return cls(rewards=rewards, combine=config.combine, weights=config.weights)

    @property
    def is_relative(self) -> bool:
        """Whether rewards are standardized among the responses to a prompt."""
        return self.combine == "standardized"

    @property
    def reads_tokens(self) -> bool:
        """Whether one of the rewards does."""
        return any(reward.reads_tokens for reward in self.rewards.values())

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Load what each reward needs, unless the last call of this process loaded it."""
        judges = _judges(store.address, self.model_dump_json(), inference, device, function_seconds)
        return Mixture(judges, self.combine, self.weights)

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs of each reward, after its name and a dot."""
        return {
            f"{name}.{field}": handle
            for name, reward in self.rewards.items()
            for field, handle in reward.parents().items()
        }

    def component_names(self) -> tuple[str, ...]:
        """Return each reward's name, followed by its own components after a dot."""
        return mixed_names({name: each.component_names() for name, each in self.rewards.items()})

    def row_schema(self, *, has_opponents: bool = False) -> pa.Schema:
        """Return the columns of the dataset `rewards`.

        Against opponents there are preferences over them.
        """
        whole = super().row_schema()
        return whole.insert(len(DATASET.schema), PREFERENCES[0].field()) if has_opponents else whole

    def numbers(self, table: pa.Table) -> dict[str, float]:
        """Return the numbers of each reward, after its name and a dot."""
        return {
            f"{name}.{number}": value
            for name, reward in self.rewards.items()
            for number, value in reward.numbers(_columns_of(name, reward, table)).items()
        }


def _columns_of(name: str, reward: Single, table: pa.Table) -> pa.Table:
    """Return the columns of one reward of a mix, as if it were alone."""
    columns = {"reward": table[name]}
    columns |= {each: table[f"{name}.{each}"] for each in reward.component_names()}
    return pa.table(columns)


@lru_cache(maxsize=1)
def _judges(
    root: str, mix: str, inference: InferenceConfig, device: str, seconds: float | None
) -> Mapping[str, Judge]:
    """Return the judge of each reward, all of whose models stay loaded for the next shard."""
    store = Store(root)
    return {
        name: _called(name, reward, reward.judge(store, inference, device, seconds))
        for name, reward in Mix.model_validate_json(mix).rewards.items()
    }


def _called(name: str, reward: Single, judge: Judge) -> Judge:
    """Return `judge`, whose errors call the reward by its place in the mix."""

    def judged(
        rows: Responses, opponents: Responses | None, progress: Progress
    ) -> Mapping[str, Any]:
        with called(f"reward.rewards.{name}", reward.kind):
            return judge(rows, opponents, progress)

    return judged
