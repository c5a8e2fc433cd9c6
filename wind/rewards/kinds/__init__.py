"""The kinds of reward.

Each is a module here, with its section of a recipe in `wind.config.rewards`. A new kind is listed
in `Reward`; nothing else asks which kind a reward is.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, get_args

from pydantic import Field

from wind.config.rewards import RewardConfig
from wind.rewards.kinds.classifier import Classifier
from wind.rewards.kinds.judge import LLMJudge
from wind.rewards.kinds.pairwise import Pairwise
from wind.rewards.kinds.remote import Remote
from wind.rewards.kinds.rule import Rule
from wind.store.datasets import Store

Reward = Annotated[Rule | Classifier | Pairwise | LLMJudge | Remote, Field(discriminator="kind")]
RESOLVERS: Final[Mapping[str, Callable[[Store, Any], Reward]]] = {
    kind.model_fields["kind"].default: kind.resolve for kind in get_args(get_args(Reward)[0])
}


def resolve_reward(store: Store, config: RewardConfig) -> Reward:
    """Return the reward that `config` names, without any path.

    Imports neither the user's function nor torch. Raises ConfigError, in one line, for a module or
    function that does not exist, a template that cannot be read, or a folder that is no model;
    InputError for a model whose files show that it is of another kind.
    """
    return RESOLVERS[config.kind](store, config)
