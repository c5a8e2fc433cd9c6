"""Mixes of rewards: their values by hand, what they must not depend on, and what they refuse."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.wind.test_reward_models import llama_reward_model
from tests.wind.test_rewards import generations, prompts
from wind.config.models import InferenceConfig
from wind.config.rewards import MixRewardConfig, RuleRewardConfig
from wind.errors import ConfigError, InputError
from wind.rewards import RewardsSpec, refuse_relative, resolve_reward
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds.mix import Mix
from wind.rewards.mix import Mixture, combined, preferences, standardized
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset

ROOT_3_2 = (3 / 2) ** 0.5
RULES = """
def length(prompts, responses, answers):
    return [float(len(response)) for response in responses]


def shout(prompts, responses, answers):
    return [
        {"reward": -float(len(response)), "letters": float(sum(map(str.isalpha, response)))}
        for response in responses
    ]
"""


def floats(*values: float) -> Floats:
    return np.array(values)


def rows(prompt_ids: str, responses: list[str]) -> Responses:
    indexes = [prompt_ids[:place].count(each) for place, each in enumerate(prompt_ids)]
    asked = [[{"role": "user", "content": "?"}]] * len(responses)
    return Responses(list(prompt_ids), indexes, asked, responses, [None] * len(responses))


def mixture(combine: str, weights: dict[str, float] | None = None) -> Mixture:
    """Rewards a response by its number of a's and of b's."""

    def counts(letter: str) -> Any:
        return lambda rows, opponents, progress: {
            "reward": np.array([float(each.count(letter)) for each in rows.responses])
        }

    return Mixture({"a": counts("a"), "b": counts("b")}, combine, weights or {})


def quiet(done: int, total: int) -> None: ...


# ------------------------------------------------------------------------------------- by hand


def test_sum_and_least_by_hand() -> None:
    rewards = {"x": floats(1, 2, 3), "y": floats(10, -10, 0)}
    assert combined(rewards, "sum", {}, "ppp").tolist() == [11, -8, 3]
    assert combined(rewards, "sum", {"y": -0.5}, "ppp").tolist() == [-4, 7, 3]
    assert combined(rewards, "min", {}, "ppp").tolist() == [1, -10, 0]
    assert combined(rewards, "min", {"x": 5, "y": 0.5}, "ppp").tolist() == [5, -5, 0]


def test_standardized_by_hand() -> None:
    # mean 2 and variance (1 + 0 + 1) / 3; mean 2 and variance (4 + 4 + 16) / 3 = 8
    rewards = {"x": floats(1, 2, 3), "y": floats(0, 0, 6)}
    assert standardized(rewards["x"], "ppp") == pytest.approx([-ROOT_3_2, 0, ROOT_3_2])
    assert standardized(rewards["y"], "ppp") == pytest.approx(floats(-2, -2, 4) / 8**0.5)
    expected = floats(-1, 0, 1) * ROOT_3_2 + 2 * floats(-2, -2, 4) / 8**0.5
    assert combined(rewards, "standardized", {"y": 2}, "ppp") == pytest.approx(expected)


def test_each_prompt_is_standardized_by_itself_and_whatever_the_scale() -> None:
    apart = standardized(floats(1, 500, 3, 900), "pqpq")
    assert apart.tolist() == [-1, -1, 1, 1]
    assert standardized(floats(0.1, 0.2, 0.4), "ppp") == pytest.approx(
        standardized(floats(1e-200, 2e-200, 4e-200), "ppp")
    )
    assert standardized(floats(1, 2, 4) * 1e90 + 7, "ppp") == pytest.approx(
        standardized(floats(1, 2, 4), "ppp")
    )


def test_a_constant_reward_says_nothing() -> None:
    rewards = {"x": floats(0.1, 0.1, 0.1, 5), "y": floats(1, 2, 3, 5)}
    made = combined(rewards, "standardized", {"x": 100}, "pppq")
    assert made == pytest.approx([-ROOT_3_2, 0, ROOT_3_2, 0])
    assert standardized(floats(0.1, 0.1, 0.1), "ppp").tolist() == [0, 0, 0]


# --------------------------------------------------------------------------- what does not matter


@pytest.mark.parametrize("combine", ["sum", "min", "standardized"])
def test_neither_the_order_of_rewards_nor_that_of_rows_matters(combine: str) -> None:
    random = np.random.default_rng(5)
    rewards = {name: random.normal(size=12) * 10.0**scale for scale, name in enumerate("zyxw")}
    groups = [str(place % 2) for place in range(12)]
    weights = {"z": 0.3, "x": 7.0}
    expected = combined(rewards, combine, weights, groups)
    for names in itertools.permutations(rewards):
        shuffled = {name: rewards[name] for name in names}
        assert (combined(shuffled, combine, weights, groups) == expected).all()
    order = random.permutation(12)
    moved = {name: values[order] for name, values in rewards.items()}
    made = combined(moved, combine, weights, [groups[place] for place in order])
    assert (made == expected[order]).all()


def test_rewards_that_cancel_tie_exactly() -> None:
    """Either response is the better one by one of two rewards: standardized, both are 0."""
    for first, second in itertools.product((0.1, 0.7, 1.3, 1e-3), (0.3, 1.1, 900.1)):
        rewards = {"x": floats(first, second), "y": floats(second, first)}
        made = combined(rewards, "standardized", {}, "pp")
        assert made[0] == made[1] == 0


def test_equal_responses_tie_exactly() -> None:
    judged = rows("pppp", ["aab", "b", "aab", "ab"])
    for combine in ("sum", "min", "standardized"):
        made = mixture(combine, {"a": 0.1})(judged, None, quiet)["reward"]
        assert made[0] == made[2]


def test_what_is_drawn_at_one_step_is_standardized_by_itself() -> None:
    judged = rows("pppp", ["a", "aaa", "aaaa", "aaaaa"])
    steps = Responses(**{**vars(judged), "groups": ["1/p", "1/p", "2/p", "2/p"]})
    assert mixture("standardized")(steps, None, quiet)["reward"].tolist() == [-1, 1, -1, 1]


# ----------------------------------------------------------------------------------- against others


def test_a_standardized_mix_compares_both_sides_in_one_scale() -> None:
    """Each side alone has the mean 0, though every response of ours has more of both."""
    ours, theirs = rows("pp", ["aaabbb", "aabb"]), rows("pp", ["ab", ""])
    alone = [mixture("standardized")(side, None, quiet)["reward"] for side in (ours, theirs)]
    assert alone[0].tolist() == alone[1].tolist() == [2, -2]
    against = mixture("standardized")(ours, theirs, quiet)
    assert against["preferences"] == [[1, 1], [1, 1]]
    assert against["reward"] == [1, 1]
    assert against["a"].tolist() == [3, 2]
    back = mixture("standardized")(theirs, ours, quiet)
    assert back["preferences"] == [[0, 0], [0, 0]]


def test_a_reward_that_only_one_side_gets_counts() -> None:
    # standardized by the opponents' own responses, it would be constant and say nothing
    against = mixture("standardized")(rows("p", ["a"]), rows("pp", ["", "c"]), quiet)
    assert against["preferences"] == [[1, 1]]


def test_preferences_follow_sample_indexes_and_equal_responses_tie() -> None:
    ours, theirs = rows("pq", ["x", "y"]), rows("qpqp", ["v", "x", "u", "w"])
    reordered = Responses(**{**vars(theirs), "sample_indexes": [1, 0, 0, 1]})
    made = preferences(ours, floats(1.0, 2.0), reordered, floats(3.0, 1.0 + 1e-15, 2.0, 0.0))
    # p: x is the same response, w is less; q: u is equal, v is more
    assert made == [[0.5, 1], [0.5, 0]]
    with pytest.raises(InputError, match="prompt r, sample 0 has no opponent"):
        preferences(rows("r", ["x"]), floats(1.0), theirs, floats(1, 2, 3, 4))


def test_a_mix_that_is_too_large_is_refused() -> None:
    with pytest.raises(InputError, match=r"the mix of rewards gave 1e\+101 for prompt p, sample 0"):
        mixture("sum", {"a": 1e101})(rows("p", ["a"]), None, quiet)


# ---------------------------------------------------------------------------------------- the stage


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mixed_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rule(name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "rule", "function": f"mixed_rules:{name}", **fields}


def mix(store: Store, rewards: dict[str, Any], **fields: Any) -> Mix:
    made = resolve_reward(store, MixRewardConfig(kind="mix", rewards=rewards, **fields))
    assert isinstance(made, Mix)
    return made


def stored(store: Store, reward: Mix, opponents: Dataset | None = None) -> Dataset:
    spec = RewardsSpec(
        prompts=prompts(store),
        generations=generations(store),
        opponents=opponents,
        reward=reward,
        inference=InferenceConfig(),
    )
    job = Job(stage="rewards", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root)))
    return run(job, quiet)


@pytest.mark.usefixtures("here")
def test_each_reward_is_a_column_with_its_components_behind(store: Store) -> None:
    rewards = {
        "shout": rule("shout", components=["letters"], corruption={"bias": 0.5}),
        "long": rule("length"),
        "late": {"kind": "overlong", "max_tokens": 2, "cache_tokens": 2},
    }
    config = MixRewardConfig.model_validate({"kind": "mix", "rewards": rewards})
    expected = ["late", "long", "shout", "shout.letters"]
    assert list(config.component_names()) == expected
    made = stored(store, mix(store, rewards, weights={"shout": 3}))
    frame = store.frame(made)
    assert frame.columns == ["prompt_id", "sample_index", "reward", *expected]
    lengths = pl.Series([1, 11, 2, 15, 0, 2])
    # one token of two
    assert frame["late"].to_list() == [-0.5] * 6
    assert frame["long"].to_list() == lengths.to_list()
    # faults are planted in the one reward
    assert frame["shout"].to_list() == (-lengths / 2).to_list()
    assert frame["reward"].to_list() == (-0.5 - lengths / 2).to_list()
    assert frame["shout.letters"].to_list() == [0, 9, 2, 12, 0, 0]
    other = mix(store, dict(reversed(rewards.items())), weights={"long": 1, "shout": 3})
    assert stored(store, other) == made


@pytest.mark.usefixtures("here")
def test_a_standardized_mix_has_preferences_over_opponents(store: Store) -> None:
    reward = mix(store, {"long": rule("length")}, combine="standardized")
    alone, against = stored(store, reward), stored(store, reward, generations(store))
    assert store.frame(alone)["reward"].to_list() == [-1, 1] * 3
    frame = store.frame(against)
    assert frame.columns == ["prompt_id", "sample_index", "reward", "preferences", "long"]
    assert frame["preferences"].to_list() == [[0.5, 0], [1, 0.5]] * 3
    assert frame["reward"].to_list() == [0.25, 0.75] * 3
    with pytest.raises(Exception, match=f"{alone.name}/.* are relative to the responses"):
        refuse_relative(store, alone)
    refuse_relative(store, stored(store, mix(store, {"long": rule("length")})))


@pytest.mark.usefixtures("here")
def test_a_sum_has_no_opponents(store: Store) -> None:
    with pytest.raises(ValueError, match="a mix rewards each response by itself"):
        stored(store, mix(store, {"long": rule("length")}), generations(store))


@pytest.mark.usefixtures("here")
def test_errors_name_the_reward_in_the_mix(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^reward\.rewards\.tone\.function mixed_rules:nope: "):
        mix(store, {"tone": rule("nope")})
    with pytest.raises(ConfigError, match=r"^reward\.rewards\.tone\.path .*missing"):
        mix(store, {"tone": {"kind": "classifier", "path": str(tmp_path / "missing")}})
    with pytest.raises(ConfigError, match=r"^reward\.rewards\.preferences has the name of a col"):
        mix(store, {"preferences": rule("length")})
    with pytest.raises(
        InputError,
        match=r"^reward\.rewards\.tone\.function mixed_rules:shout returned letters too: "
        r"list it under reward\.rewards\.tone\.components",
    ):
        stored(store, mix(store, {"tone": rule("shout")}))
    config = RuleRewardConfig(kind="rule", function="mixed_rules:nope")
    with pytest.raises(ConfigError, match=r"^evaluation\.judges\.style\.function mixed_rules:nope"):
        resolve_reward(store, config, "evaluation.judges.style")
    nested = MixRewardConfig(kind="mix", rewards={"tone": rule("nope")})
    with pytest.raises(
        ConfigError, match=r"^evaluation\.judges\.style\.rewards\.tone\.function mixed_rules:nope"
    ):
        resolve_reward(store, nested, "evaluation.judges.style")


@pytest.mark.slow
def test_every_model_of_a_mix_is_a_parent_and_stays_loaded(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("first", "second")}
    for width, folder in zip((32, 64), folders.values(), strict=True):
        llama_reward_model(folder, tiny_model, intermediate_size=width)
    rewards = {
        name: {"kind": "classifier", "path": str(folder)} for name, folder in folders.items()
    }
    reward = mix(store, rewards, combine="min")
    made = stored(store, reward)
    assert set(store.manifest(made).parents) == {
        "prompts",
        "generations",
        "first.model",
        "second.model",
    }
    frame = store.frame(made)
    least = frame.select(pl.min_horizontal("first", "second")).to_series()
    assert frame["reward"].to_list() == least.to_list()
    assert frame["first"].to_list() != frame["second"].to_list()
    judges = [reward.judge(store, InferenceConfig(), "cpu", None) for _ in range(2)]
    first, second = (vars(judge)["_judges"] for judge in judges)
    assert first is second
