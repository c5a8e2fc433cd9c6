"""The demo's models, made from nothing by a flow of the same kind as the one that improves them."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from wind.demo import sums


@flow(name="bootstrap", persist_result=False)
def bootstrap(out: Path, seed: int) -> dict[str, float]:
    """Write `out`/base, `out`/reward and `out`/prompts.jsonl; returns what was measured on held-out
    sums.
    """
    base = pretrain(out / "base", seed)
    reward = train_reward(out / "reward", seed)
    sums.write_prompts(out / "prompts.jsonl", seed=seed)
    return {f"base_{name}": value for name, value in base.items()} | {
        f"reward_{name}": value for name, value in reward.items()
    }


@task(cache_policy=NO_CACHE, persist_result=False)
def pretrain(out: Path, seed: int) -> dict[str, float]:
    """The base policy: a small Llama that has read many sums, most of them answered wrongly."""
    from wind.demo.policy import pretrain_policy

    return pretrain_policy(out, seed=seed)


@task(cache_policy=NO_CACHE, persist_result=False)
def train_reward(out: Path, seed: int) -> dict[str, float]:
    """The reward model: trained on which of two responses people prefer."""
    from wind.demo.reward import train_reward_model

    return train_reward_model(out, seed=seed)
