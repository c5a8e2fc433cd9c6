"""What a run takes from outside: the base policy, the reward, the files of prompts. Each is copied
into the store first.
"""

import wind.models
import wind.prompts
import wind.rewards
from tasks.run import current_run
from wind.config.models import PolicyConfig
from wind.config.prompts import PromptsConfig
from wind.config.rewards import RewardConfig
from wind.prompts import PromptsSpec
from wind.rewards import Reward
from wind.store.handles import Model


def import_policy(config: PolicyConfig) -> Model:
    """The stored copy of the base policy, named by its content, so that an edited folder is another
    policy.
    """
    return wind.models.import_policy(current_run().store, config)


def import_reward(config: RewardConfig) -> Reward:
    """The reward, named by the content of its model or by the source of its function."""
    return wind.rewards.resolve_reward(current_run().store, config)


def import_prompts(config: PromptsConfig, tokenizer: Model, seed: int) -> PromptsSpec:
    """The spec of the prompts: their stored source, and how its rows become token ids."""
    store = current_run().store
    source = wind.prompts.import_prompts(store, config)
    return wind.prompts.prompts_spec(store, config, source, tokenizer, seed)
