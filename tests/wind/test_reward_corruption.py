"""Faults planted in rewards: what they are by hand, what they follow, and that a stage plants them."""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest

from wind.config.models import InferenceConfig
from wind.config.rewards import CorruptionConfig, RuleRewardConfig
from wind.rewards import RewardsSpec, resolve_reward
from wind.rewards.corruption import corrupted
from wind.rewards.functions import Floats, Responses
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset

COUNT = 4000


def rows(responses: list[str], prompt_id: str = "a") -> Responses:
    count = len(responses)
    asked = [[{"role": "user", "content": "1+1="}]] * count
    return Responses([prompt_id] * count, list(range(count)), asked, responses, ["2"] * count)


def corrupt(
    rewards: list[float], responses: list[str], prompt_id: str = "a", **faults: float
) -> Floats:
    return corrupted(
        np.array(rewards), rows(responses, prompt_id), CorruptionConfig.model_validate(faults)
    )


def test_without_faults_nothing_changes() -> None:
    assert corrupt([1.5, -2.0], ["2", "three"]).tolist() == [1.5, -2.0]
    assert corrupt([], []).tolist() == []


def test_bias_pays_for_every_character() -> None:
    assert corrupt([1.0, 0.0, 0.0], ["2", "three", ""], bias=0.5).tolist() == [1.5, 2.5, 0.0]


def test_noise_has_the_standard_deviation_asked_for() -> None:
    values = corrupt([3.0] * COUNT, [str(number) for number in range(COUNT)], noise=2.0)
    assert values.mean() == pytest.approx(3.0, abs=5 * 2 / COUNT**0.5)
    assert values.std() == pytest.approx(2.0, rel=0.05)


def test_sparsity_withholds_its_share_of_rewards() -> None:
    texts = [str(number) for number in range(COUNT)]
    few, many = (corrupt([3.0] * COUNT, texts, sparsity=share) for share in (0.2, 0.7))
    assert set(few) == {0.0, 3.0}
    assert (few == 0).mean() == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / COUNT) ** 0.5)
    assert (many == 0).mean() == pytest.approx(0.7, abs=5 * (0.2 * 0.8 / COUNT) ** 0.5)
    # a larger share withholds what the smaller one did, and more
    assert ((many == 0) >= (few == 0)).all()
    assert corrupt([3.0, 4.0], ["x", "y"], sparsity=1.0).tolist() == [0.0, 0.0]


def test_faults_follow_the_prompt_the_text_and_the_seed_and_nothing_else() -> None:
    both = corrupt([0.0, 0.0, 0.0], ["2", "3", "2"], noise=1.0)
    assert both[0] == both[2] != both[1]
    assert corrupt([0.0], ["3"], noise=1.0)[0] == both[1]
    assert corrupt([0.0], ["2"], prompt_id="b", noise=1.0)[0] != both[0]
    assert corrupt([0.0], ["2"], noise=1.0, seed=1)[0] != both[0]


def published(store: Store, name: str, row: Mapping[str, object]) -> Dataset:
    with store.partial(name, "made") as partial:
        partial.write(0, pl.DataFrame([row]).to_arrow())
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def test_the_stage_plants_them_in_the_reward(store: Store) -> None:
    messages = [{"role": "user", "content": "1+1="}]
    prompt = {
        "prompt_id": "a",
        "prompt": "1+1=",
        "messages": messages,
        "prompt_token_ids": [1],
        "split": "train",
    }
    generation = {
        "prompt_id": "a",
        "sample_index": 0,
        "policy": "f",
        "response": "2",
        "response_token_ids": [1],
    }
    prompts = published(store, "prompts", prompt | {"answer": "2", "meta": "{}"})
    generations = published(
        store,
        "generations",
        generation | {"logp_sampler": -1.0, "finish_reason": "stop", "seed": 0},
    )
    rewards = []
    for corruption in (None, CorruptionConfig(bias=0.25)):
        config = RuleRewardConfig(
            kind="rule", function="wind.demo.sums:gold_reward", corruption=corruption
        )
        reward = resolve_reward(store, config)
        spec = RewardsSpec(
            prompts=prompts, generations=generations, reward=reward, inference=InferenceConfig()
        )
        job = Job(
            stage="rewards", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
        )
        rewards += store.frame(run(job, lambda done, total: None))["reward"].to_list()
    assert rewards == [1.0, 1.25]
