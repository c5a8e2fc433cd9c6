"""The kinds of reward.

Each is a module here, with its section of a recipe in `wind.config.rewards`. A new kind is listed
in `wind.rewards.kinds.single`, if it may be part of a mix, or else in `Reward`; nothing else asks
which kind a reward is.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from wind.config.rewards import RewardConfig
from wind.rewards.kinds.base import called
from wind.rewards.kinds.mix import Mix
from wind.rewards.kinds.single import SINGLES, Single
from wind.store.datasets import Store

Reward = Annotated[Single | Mix, Field(discriminator="kind")]
RESOLVERS: Final[Mapping[str, Callable[[Store, Any], Reward]]] = {**SINGLES, "mix": Mix.resolve}


def resolve_reward(store: Store, config: RewardConfig, setting: str = "reward") -> Reward:
    """Return the reward that `config` names, without any path.

    `setting` is its dotted name in the recipe. Imports neither the user's function nor torch.
    Raises ConfigError, in one line, for a module or function that does not exist, a template that
    cannot be read, or a folder that is no model; InputError for a model whose files show that it is
    of another kind.
    """
    with called(setting, config.kind):
        return RESOLVERS[config.kind](store, config)
