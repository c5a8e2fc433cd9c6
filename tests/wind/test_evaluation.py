"""Evaluation: rows by hand.

Both ways of judging a gold answer, and sides that do not belong together.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from wind.config.evaluation import EvaluationConfig
from wind.errors import ConfigError, DatasetError, InputError
from wind.evaluation import evaluation, exact_match, resolve_match
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.schemas import preferences_schema

KEY = {"prompt_id": ["a", "a", "b", "b"], "sample_index": [0, 1, 0, 1]}


def side(rewards: list[float], **columns: list[Any]) -> pl.DataFrame:
    made = {
        "response": [str(reward) for reward in rewards],  # equal texts have equal rewards
        "reward": rewards,
        "response_tokens": [1, 2, 3, 4],
        "is_truncated": [False] * 4,
        "accuracy": [1.0, 0.0, None, None],
    }
    return pl.DataFrame(KEY | made | columns)


def logps() -> pl.DataFrame:
    return pl.DataFrame(
        KEY | {"logp_policy": [-1.0, -2.0, -3.0, -4.0], "logp_reference": [-5.0, -6.0, -7.0, -8.0]}
    )


def test_rows_by_hand() -> None:
    policy = side([3.0, 1.0, 2.0, 2.0], is_truncated=[True, False, False, False])
    reference = side(
        [1.0, 2.0, 2.0, 5.0], response_tokens=[9, 8, 7, 6], accuracy=[0.0, 0.0, None, None]
    )
    rows = evaluation(policy, reference, logps())
    # 3 beats 1 and 2; 1 ties 1 and loses to 2; 2 ties 2 and loses to 5.
    assert rows["win_rate"].to_list() == [1.0, 0.25, 0.25, 0.25]
    assert rows["tie_share"].to_list() == [0.0, 0.5, 0.5, 0.5]
    assert rows["reward_policy"].to_list() == [3.0, 1.0, 2.0, 2.0]
    assert rows["reward_reference"].to_list() == [1.0, 2.0, 2.0, 5.0]
    assert rows["response_tokens_policy"].to_list() == [1, 2, 3, 4]
    assert rows["response_tokens_reference"].to_list() == [9, 8, 7, 6]
    assert rows["is_truncated_policy"].to_list() == [True, False, False, False]
    assert rows["is_truncated_reference"].to_list() == [False] * 4
    assert rows["accuracy_policy"].to_list() == [1.0, 0.0, None, None]
    assert rows["accuracy_reference"].to_list() == [0.0, 0.0, None, None]
    assert rows["logp_policy"].to_list() == [-1.0, -2.0, -3.0, -4.0]
    assert rows["logp_reference"].to_list() == [-5.0, -6.0, -7.0, -8.0]


def test_the_same_response_ties_with_itself_though_it_was_scored_twice() -> None:
    """A model's reward of one text differs in its last bits from batch to batch."""
    bit = 2.0**-23
    policy = side([1 + bit, 1 - bit, 5.0, 4.0], response=["x", "y", "x", "new"])
    reference = side([1.0, 1 + bit / 2, 5 + bit, 5 - bit], response=["x", "z", "y", "x"])
    rows = evaluation(policy, reference, logps())
    # Of a: x is 1 on both sides, ties x and loses to z; y loses to both. Of b: x is 5 - bit on both
    # sides; new loses to both.
    assert rows["win_rate"].to_list() == [0.25, 0.0, 0.25, 0.0]
    assert rows["tie_share"].to_list() == [0.5, 0.0, 0.5, 0.0]
    assert rows["reward_policy"].to_list() == [1 + bit, 1 - bit, 5.0, 4.0]  # as recorded
    nan = side([1.0, float("nan"), 5.0, 4.0], response=["x", "z", "x", "new"])
    with pytest.raises(InputError, match=r"prompt a, sample 1 has the reward NaN"):
        evaluation(nan, reference, logps())


def test_rows_of_preferences_by_hand() -> None:
    # Of a: P = [1 1/2; 1/4 1/4] over the reference's two responses; of b: [1/2 0; 1/2 1].
    policy = side(
        [0.75, 0.25, 0.25, 0.75], preferences=[[1.0, 0.5], [0.25, 0.25], [0.5, 0.0], [0.5, 1.0]]
    )
    rows = evaluation(policy.reverse(), side([0.0] * 4).drop("reward").reverse(), logps())
    assert rows["win_rate"].to_list() == rows["reward_policy"].to_list() == [0.75, 0.25, 0.25, 0.75]
    assert rows["tie_share"].to_list() == [0.5, 0.0, 0.5, 0.5]
    # Its mean preference over the policy's: 1 - (1 + 1/4) / 2, 1 - (1/2 + 1/4) / 2, 1 - (1/2 + 1/2)
    # / 2, 1 - (0 + 1) / 2.
    assert rows["reward_reference"].to_list() == [0.375, 0.625, 0.5, 0.5]
    assert rows["reward_policy"].to_numpy().mean() + rows["reward_reference"].to_numpy().mean() == 1


@pytest.mark.parametrize(
    "preferences", [[[1.0, 0.5], [0.5], [0.5, 0.5], [0.5, 1.0]], [[1.0, 0.5, 0.5]] * 4]
)
def test_preferences_over_other_responses_are_refused(preferences: list[list[float]]) -> None:
    policy = side([0.5] * 4, preferences=preferences)
    with pytest.raises(
        InputError, match=r"has not one preference for each response of the reference to its prompt"
    ):
        evaluation(policy, side([0.0] * 4).drop("reward"), logps())


def test_a_preference_that_is_nan_is_refused() -> None:
    policy = side([0.5] * 4, preferences=[[1.0, 0.5], [0.5, 0.5], [0.5, 0.5], [float("nan"), 1.0]])
    with pytest.raises(InputError, match=r"prompt b, sample 1 has the preference NaN"):
        evaluation(policy, side([0.0] * 4).drop("reward"), logps())


def test_a_policy_against_itself_wins_half() -> None:
    policy = side([3.0, 1.0, 2.0, 2.0])
    assert evaluation(policy, policy, logps())["win_rate"].mean() == 0.5


def test_win_rates_of_swapped_sides_add_up_to_one() -> None:
    first, second = side([3.0, 1.0, 2.0, 2.0]), side([1.0, 2.0, 2.0, 5.0])
    means = [
        evaluation(*sides, logps())["win_rate"].to_numpy().mean()
        for sides in ((first, second), (second, first))
    ]
    assert sum(means) == 1.0


def test_order_of_rows_does_not_matter() -> None:
    policy, reference = side([3.0, 1.0, 2.0, 2.0]), side([1.0, 2.0, 2.0, 5.0])
    assert evaluation(policy.reverse(), reference.reverse(), logps()).equals(
        evaluation(policy, reference, logps())
    )


@pytest.mark.parametrize(
    ("lacking", "what"), [("reference", "3 reference responses"), ("logps", "3 log-probabilities")]
)
def test_sides_that_do_not_belong_together_are_refused(lacking: str, what: str) -> None:
    inputs = {"policy": side([1.0] * 4), "reference": side([1.0] * 4), "logps": logps()}
    inputs[lacking] = inputs[lacking].head(3)
    with pytest.raises(
        InputError, match=f"4 responses of the policy and {what}, and 3 belong together"
    ):
        evaluation(**inputs)


def test_exact_match_ignores_surrounding_white_space_and_compares_numbers_as_numbers() -> None:
    rows = pl.DataFrame(
        {
            "response": [" 42\n", "4 2", "", "x", "42.0", "a"],
            "answer": ["42 ", "42", "", None, "42", "A"],
        }
    )
    assert exact_match(rows).to_list() == [1.0, 0.0, 1.0, None, 1.0, 0.0]


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, for modules of the user's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(
    store: Store, name: str, frame: pl.DataFrame, schema: pa.Schema | None = None
) -> Dataset:
    with store.partial(name, "made") as partial:
        partial.write(0, frame.to_arrow(), schema)
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def generations(policy: str, responses: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        KEY
        | {
            "policy": [policy] * 4,
            "response": responses,
            "response_token_ids": [[1], [1, 2], [1, 2, 3], [1]],
            "logp_sampler": [-1.0] * 4,
            "finish_reason": ["stop", "stop", "length", "stop"],
            "seed": [1, 2, 3, 4],
        }
    )


def job(
    store: Store,
    config: EvaluationConfig,
    rewards_reference: pl.DataFrame | None = None,
    preferences: pl.DataFrame | None = None,
) -> Job:
    """Of a scalar reward, or with `preferences` of a pairwise one."""
    prompts = pl.DataFrame(
        {
            "prompt_id": ["a", "b"],
            "prompt": ["<u>1+1", "<u>hi"],
            "messages": [[{"role": "user", "content": "1+1"}], [{"role": "user", "content": "hi"}]],
            "prompt_token_ids": [[1], [1]],
            "split": ["eval", "eval"],
            "answer": ["2", None],
            "meta": ["{}", "{}"],
        }
    )
    rewards = pl.DataFrame(KEY | {"reward": [3.0, 1.0, 2.0, 2.0]})
    frames = {
        "prompts": prompts,
        "generations_policy": generations("p", ["2", "3", "x", "y"]),
        "generations_reference": generations("r", ["4", "2 ", "x", "y"]),
        "rewards_policy": rewards,
        "rewards_reference": rewards if rewards_reference is None else rewards_reference,
        "logps": logps().with_columns(response_tokens=pl.lit(1)),
    }
    spec: dict[str, Any] = {
        field: publish(store, field.partition("_")[0], frame).model_dump()
        for field, frame in frames.items()
    }
    spec |= {"evaluation": config.model_dump(), "match_digest": resolve_match(config)}
    if preferences is not None:
        spec |= {
            "rewards_policy": publish(
                store, "rewards", preferences, preferences_schema()
            ).model_dump()
        }
        del spec["rewards_reference"]
    return Job(stage="evaluation", spec=spec, place=Place(root=str(store.root)))


def test_the_stage_by_hand(store: Store) -> None:
    made = run(job(store, EvaluationConfig()), lambda done, total: None)
    rows = store.frame(made)
    assert rows["win_rate"].to_list() == [0.75, 0.25, 0.5, 0.5]
    assert rows["accuracy_policy"].to_list() == [1.0, 0.0, None, None]
    assert rows["accuracy_reference"].to_list() == [0.0, 1.0, None, None]
    assert rows["response_tokens_policy"].to_list() == [1, 2, 3, 1]
    assert rows["is_truncated_policy"].to_list() == [False, False, True, False]
    assert store.manifest(made).numbers == {
        "win_rate": 0.5,
        "reward_policy": 2.0,
        "reward_reference": 2.0,
    }


def test_the_stage_by_hand_with_a_pairwise_reward(store: Store) -> None:
    lists = [[1.0, 0.5], [0.25, 0.25], [0.5, 0.0], [0.5, 1.0]]
    preferences = pl.DataFrame(
        KEY | {"reward": [0.75, 0.25, 0.25, 0.75], "preferences": lists, "cut_share": [0.0] * 4}
    )
    made = run(job(store, EvaluationConfig(), preferences=preferences), lambda done, total: None)
    assert store.frame(made)["win_rate"].to_list() == [0.75, 0.25, 0.25, 0.75]
    assert store.frame(made)["reward_reference"].to_list() == [0.375, 0.625, 0.5, 0.5]
    assert store.manifest(made).numbers == {
        "win_rate": 0.5,
        "reward_policy": 0.5,
        "reward_reference": 0.5,
    }


def test_a_scalar_reward_needs_the_references_rewards(store: Store) -> None:
    scalar = job(store, EvaluationConfig())
    del scalar.spec["rewards_reference"]
    with pytest.raises(
        DatasetError,
        match="has no preferences: a scalar reward needs the reference's rewards beside it",
    ):
        run(scalar, lambda done, total: None)


def test_a_users_match_sees_only_rows_with_a_gold_answer(store: Store, rules: Path) -> None:
    (rules / "near_match.py").write_text(
        "def near(prompts, responses, answers):\n"
        "    assert prompts == ['1+1', '1+1'] and answers == ['2', '2'], (prompts, answers)\n"
        "    return [abs(int(r) - int(a)) <= 1 for r, a in zip(responses, answers)]\n"
    )
    made = run(job(store, EvaluationConfig(match="near_match:near")), lambda done, total: None)
    assert store.frame(made)["accuracy_policy"].to_list() == [1.0, 1.0, None, None]
    assert store.frame(made)["accuracy_reference"].to_list() == [0.0, 1.0, None, None]


def test_a_match_that_is_neither_0_nor_1_is_refused(store: Store, rules: Path) -> None:
    (rules / "soft_match.py").write_text(
        "def soft(prompts, responses, answers):\n    return [1.0, 0.5]\n"
    )
    with pytest.raises(
        InputError,
        match=r"evaluation.match soft_match:soft gave 0.5 for prompt a, sample 1: return 0 or 1",
    ):
        run(job(store, EvaluationConfig(match="soft_match:soft")), lambda done, total: None)


def test_a_match_that_is_not_there_is_a_config_error(rules: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^evaluation\.match no_such:f: there is no module no_such"
    ):
        resolve_match(EvaluationConfig(match="no_such:f"))


def test_rewards_of_other_generations_are_refused(store: Store) -> None:
    fewer = pl.DataFrame({"prompt_id": ["a"], "sample_index": [0], "reward": [1.0]})
    with pytest.raises(DatasetError, match="do not belong to generations/"):
        run(job(store, EvaluationConfig(), rewards_reference=fewer), lambda done, total: None)
