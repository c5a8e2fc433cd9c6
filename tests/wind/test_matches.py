"""Matches by hand: rewards, preferences, gold answers, other lengths, and repeated verdicts."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from wind.config.evaluation import EvaluationConfig
from wind.errors import DatasetError
from wind.matches import MatchesSpec, Opponent, Verdicts, matched, repeat_differences
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.imports import import_model
from wind.store.schemas import declared

KEY = {"prompt_id": ["a", "a", "b", "b"], "sample_index": [0, 1, 0, 1]}


def side(texts: list[str], rewards: list[float], tokens: list[int], **more: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {**KEY, "response": texts, "reward": rewards, "response_tokens": tokens, **more}
    )


def test_an_opponent_may_have_any_number_of_samples() -> None:
    """Of a it has three, and of b one: 3 beats 1 and 2 and ties 3; 1 ties 1; of b 5 beats 4."""
    policy = side(["p", "q", "r", "s"], [3.0, 1.0, 5.0, 4.0], [2, 4, 6, 8])
    opponent = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "a", "b"],
            "sample_index": [0, 1, 2, 0],
            "response": ["t", "u", "v", "w"],
            "reward": [1.0, 2.0, 3.0, 4.0],
            "response_tokens": [1, 2, 6, 5],
        }
    )
    rows = matched(policy, opponent)
    assert rows["win_rate"].to_list() == pytest.approx([2.5 / 3, 0.5 / 3, 1.0, 0.5])
    assert rows["tie_share"].to_list() == pytest.approx([1 / 3, 1 / 3, 0.0, 1.0])
    assert rows["reward_policy"].to_list() == [3.0, 1.0, 5.0, 4.0]
    assert rows["reward_opponent"].to_list() == [1.0, 2.0, 4.0, None]
    assert rows["response_tokens_policy"].to_list() == [2, 4, 6, 8]
    assert rows["response_tokens_opponent"].to_list() == [1, 2, 5, None]
    assert rows["mean_tokens_opponent"].to_list() == [3.0, 3.0, 5.0, 5.0]


def test_equal_responses_tie_though_they_were_scored_twice() -> None:
    bit = 2.0**-23
    policy = side(["x", "y", "x", "y"], [1 + bit, 2.0, 1.0, 0.0], [1] * 4)
    opponent = side(["x", "z", "z", "z"], [1.0, 0.0, 1.0, 1.0], [1] * 4)
    assert matched(policy, opponent)["win_rate"].to_list() == [0.75, 1.0, 0.5, 0.0]


def test_preferences_hold_both_sides() -> None:
    lists = [[1.0, 0.5], [0.25, 0.25], [0.5, 0.0], [0.5, 1.0]]
    policy = side(["p"] * 4, [0.75, 0.25, 0.25, 0.75], [1] * 4, preferences=lists)
    rows = matched(policy, side(["r"] * 4, [0.0] * 4, [1] * 4).drop("reward"))
    assert rows["win_rate"].to_list() == [0.75, 0.25, 0.25, 0.75]
    assert rows["reward_opponent"].to_list() == [0.375, 0.625, 0.5, 0.5]


def test_repeated_verdicts_by_hand() -> None:
    once = pl.DataFrame(KEY | {"reward": [1.0, 2.0, 3.0, 4.0]})
    again = once.with_columns(reward=pl.Series([1.0, 2.5, 3.0, 0.0]))
    differs = repeat_differences(once, again).sort(*KEY)
    assert differs["repeat_difference"].to_list() == [0.0, 1.0, 0.0, 1.0]
    lists = [[1.0, 0.5], [0.25, 0.25], [0.5, 0.0], [0.5, 1.0]]
    pairs = once.with_columns(preferences=pl.Series(lists))
    others = [[1.0, 0.0], [0.25, 0.25], [0.0, 0.5], [0.5, 1.0]]
    differs = repeat_differences(pairs, once.with_columns(preferences=pl.Series(others)))
    assert differs.sort(*KEY)["repeat_difference"].to_list() == [0.5, 0.0, 1.0, 0.0]
    with pytest.raises(DatasetError, match="are about other responses: rerun rewards"):
        repeat_differences(once, again.head(3))


def publish(
    store: Store, name: str, frame: pl.DataFrame, schema: pa.Schema | None = None
) -> Dataset:
    with store.partial(name, "made") as partial:
        partial.write(0, frame.to_arrow(), schema)
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


def generations(store: Store, texts: list[str]) -> Dataset:
    frame = pl.DataFrame(
        KEY
        | {
            "policy": ["p"] * 4,
            "response": texts,
            "response_token_ids": [[1], [1, 2], [1, 2, 3], [1]],
            "logp_sampler": [-1.0] * 4,
            "finish_reason": ["stop"] * 4,
            "seed": [1, 2, 3, 4],
        }
    )
    return publish(store, "generations", frame)


def rewards(store: Store, values: list[float], **key: Any) -> Dataset:
    return publish(store, "rewards", pl.DataFrame({**KEY, **key, "reward": values}))


@pytest.fixture
def spec(store: Store, tiny_model: Path) -> MatchesSpec:
    """A policy against another one, and against stored texts, under two judges."""
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
    evaluated = {
        "reward_policy": [3.0, 1.0, 2.0, 2.0],
        "reward_reference": [0.0] * 4,
        "win_rate": [0.5] * 4,
        "tie_share": [0.5] * 4,
        "response_tokens_policy": [1, 2, 3, 1],
        "response_tokens_reference": [1] * 4,
        "is_truncated_policy": [False] * 4,
        "is_truncated_reference": [False] * 4,
        "logp_policy": [-1.0] * 4,
        "logp_reference": [-1.0] * 4,
        "accuracy_policy": [1.0, 0.0, None, None],
        "accuracy_reference": [0.0, 0.0, None, None],
    }
    one_each = {"prompt_id": ["a", "b"], "sample_index": [0, 0]}
    stored = publish(store, "responses", pl.DataFrame(one_each | {"response": ["2", "abc"]}))
    ours = generations(store, ["2", "3", "x", "y"])
    ours_by_training = rewards(store, [3.0, 1.0, 2.0, 2.0])
    ours_by_other = rewards(store, [0.0, 0.0, 1.0, 1.0])
    return MatchesSpec(
        prompts=publish(store, "prompts", prompts),
        generations_policy=ours,
        evaluation=publish(store, "evaluation", pl.DataFrame(KEY | evaluated)),
        opponents={
            "initial": Opponent(
                responses=generations(store, ["4", "2 ", "v", "w"]), has_tokens=True
            ),
            "gpt": Opponent(responses=stored, has_tokens=False),
        },
        verdicts={
            "training": {
                "initial": Verdicts(
                    policy=ours_by_training, opponent=rewards(store, [2.0, 2.0, 3.0, 2.0])
                ),
                "gpt": Verdicts(
                    policy=ours_by_training, opponent=rewards(store, [3.0, 0.0], **one_each)
                ),
            },
            "other": {
                "initial": Verdicts(
                    policy=ours_by_other,
                    opponent=rewards(store, [0.0] * 4),
                    repeated=rewards(store, [0.0, 0.0, 1.0, 5.0]),
                ),
                "gpt": Verdicts(
                    policy=ours_by_other, opponent=rewards(store, [9.0, 9.0], **one_each)
                ),
            },
        },
        tokenizer=import_model(store, tiny_model),
        evaluation_config=EvaluationConfig(),
    )


def computed(store: Store, spec: MatchesSpec) -> Dataset:
    job = Job(stage="matches", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root)))
    return run(job, lambda done, total: None)


def test_the_stage_by_hand(store: Store, spec: MatchesSpec) -> None:
    made = computed(store, spec)
    rows = store.frame(made)
    assert made.rows == 2 * 2 * 4 + 2 * 2  # the judges, and gold answers to one prompt of two

    def win_rates(judge: str, opponent: str) -> list[float]:
        return rows.filter(judge=judge, opponent=opponent)["win_rate"].to_list()

    # 3 beats 2, 2; 1 loses to both; 2 loses to 3 and ties 2
    assert win_rates("training", "initial") == [1.0, 0.0, 0.25, 0.25]
    # the text 2 ties with itself, 1 loses to 3; 2 beats 0
    assert win_rates("training", "gpt") == [0.5, 0.0, 1.0, 1.0]
    assert win_rates("other", "initial") == [0.5, 0.5, 1.0, 1.0]
    # its text is equal to one that was judged 9, and so it ties
    assert win_rates("other", "gpt") == [0.5, 0.0, 0.0, 0.0]
    # right against wrong and right; wrong against both
    assert win_rates("gold", "initial") == [0.75, 0.25]
    assert win_rates("gold", "gpt") == [0.5, 0.0]
    stored = rows.filter(judge="training", opponent="gpt")
    # by the tiny tokenizer a character is a token, and an end is one more
    assert stored["response_tokens_opponent"].to_list() == [2, None, 4, None]
    assert stored["mean_tokens_opponent"].to_list() == [2.0, 2.0, 4.0, 4.0]
    against = rows.filter(judge="training", opponent="initial")
    assert against["response_tokens_opponent"].to_list() == [1, 2, 3, 1]
    assert against["repeat_difference"].to_list() == [None] * 4
    repeated = rows.filter(judge="other", opponent="initial")["repeat_difference"]
    assert repeated.to_list() == [0.0, 0.0, 0.0, 1.0]
    assert store.manifest(made).numbers["win_rate.training.initial"] == 1.5 / 4
    assert rows.columns == declared("matches").schema.names


def test_parents_have_readable_names(spec: MatchesSpec) -> None:
    assert list(spec.parents()) == [
        "prompts",
        "generations_policy",
        "evaluation",
        "tokenizer",
        "generations.initial",
        "responses.gpt",
        "rewards_policy.initial.training",
        "rewards_opponent.initial.training",
        "rewards_policy.gpt.training",
        "rewards_opponent.gpt.training",
        "rewards_policy.initial.other",
        "rewards_opponent.initial.other",
        "rewards_repeated.initial.other",
        "rewards_policy.gpt.other",
        "rewards_opponent.gpt.other",
    ]


def test_rewards_of_other_responses_are_refused(store: Store, spec: MatchesSpec) -> None:
    fewer = rewards(store, [1.0], prompt_id=["a"], sample_index=[0])
    verdicts = {**spec.verdicts["training"], "gpt": Verdicts(policy=fewer, opponent=fewer)}
    with pytest.raises(DatasetError, match=r"^rewards/\w{12} is about other responses: rerun"):
        computed(store, spec.model_copy(update={"verdicts": {"training": verdicts}}))
