"""What every kind of reward answers for itself, and what one that overrides nothing is."""

from typing import Any, Literal, get_args

import numpy as np
import pytest

from wind.config.base import without_defaults
from wind.config.models import InferenceConfig
from wind.config.rewards import REWARD_SECTIONS, CorruptionConfig, RewardSection
from wind.rewards import Reward, resolve_reward
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds import RESOLVERS
from wind.rewards.kinds.base import Judge, RewardKind, inference_of, scalar_judge
from wind.rewards.kinds.classifier import Classifier
from wind.rewards.kinds.judge import LLMJudge
from wind.rewards.kinds.pairwise import Pairwise
from wind.rewards.kinds.remote import Remote
from wind.rewards.kinds.rule import Rule
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.handles import Model

RULE = Rule(function="m:f", components=("tone", "length"), source_digest="0")
MODEL = Model(fingerprint="f" * 64, parameters=1)
ROWS = Responses(
    ["a", "a"], [0, 1], [[{"role": "user", "content": "?"}]] * 2, ["x", "xyz"], [None] * 2
)


class LengthConfig(RewardSection):
    """The section of a kind whose settings are all content."""

    kind: Literal["length"]
    target: int
    corruption: CorruptionConfig | None = None


class Length(RewardKind):
    """Minus the distance of a response's length from `target`, in characters."""

    kind: Literal["length"] = "length"
    target: int
    corruption: CorruptionConfig | None = None

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        return scalar_judge(self, self.corruption)

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        lengths_B = np.array([len(response) for response in rows.responses], dtype=np.float64)
        return {"reward": -np.abs(lengths_B - self.target)}


def test_every_kind_of_a_recipe_has_its_counterpart_in_a_spec() -> None:
    assert REWARD_SECTIONS.keys() == RESOLVERS.keys(), (
        "a kind needs a section in wind/config/rewards.py and a class in the union Single of "
        "wind/rewards/kinds/single.py, or in Reward of wind/rewards/kinds/__init__.py"
    )
    for kind in get_args(get_args(Reward)[0]):
        assert get_args(kind.model_fields["kind"].annotation) == (
            kind.model_fields["kind"].default,
        )


def test_a_kind_without_a_judge_is_refused() -> None:
    class Nobody(RewardKind):
        kind: Literal["nobody"] = "nobody"

    with pytest.raises(TypeError, match="abstract"):
        Nobody()  # type: ignore[abstract]


def test_a_kind_that_overrides_nothing_scores_each_response_by_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolvers: dict[str, Any] = {"length": Length.resolve}
    monkeypatch.setattr("wind.rewards.kinds.RESOLVERS", resolvers)
    sections: Any = {"length": LengthConfig}
    monkeypatch.setattr("wind.rewards.kinds.base.REWARD_SECTIONS", sections)
    config: Any = LengthConfig(kind="length", target=2)
    reward: Any = resolve_reward(store, config)
    assert reward == Length(target=2)
    assert reward.parents() == {}
    assert reward.row_schema().names == ["prompt_id", "sample_index", "reward"]
    assert (reward.gives_preferences, reward.is_relative, reward.reads_tokens) == (False,) * 3
    assert (config.component_names(), config.seconds_per_call()) == ((), None)
    judge = reward.judge(store, InferenceConfig(), "cpu", None)
    assert judge(ROWS, None, lambda done, total: None)["reward"].tolist() == [-1.0, -1.0]


def test_a_scalar_judge_plants_the_faults(store: Store) -> None:
    reward = Length(target=2, corruption=CorruptionConfig(bias=10.0))
    judge = reward.judge(store, InferenceConfig(), "cpu", None)
    made = judge(ROWS, None, lambda done, total: None)["reward"]
    assert made.tolist() == [9.0, 29.0]  # -1 + 10 * 1 character, -1 + 10 * 3 characters


def test_the_components_of_a_rule_are_columns() -> None:
    assert RULE.row_schema().names == ["prompt_id", "sample_index", "reward", "tone", "length"]
    assert RULE.parents() == {}


def test_the_model_of_a_reward_is_a_parent() -> None:
    assert Classifier(model=MODEL).parents() == {"model": MODEL}
    pairwise = Pairwise(model=MODEL, architecture="cross_encoder")
    assert pairwise.parents() == {"model": MODEL}
    assert pairwise.gives_preferences
    assert "preferences" in pairwise.row_schema().names


def test_a_model_may_have_a_dtype_and_a_batch_size_of_its_own() -> None:
    model = Classifier(model=MODEL)
    assert without_defaults(model).keys() == {"kind", "model"}
    assert without_defaults(model.model_copy(update={"batch_tokens": 7})).keys() == {
        "kind",
        "model",
        "batch_tokens",
    }
    common = InferenceConfig(dtype="float32", batch_tokens=100)
    assert inference_of(common, None, None) == common
    assert inference_of(common, "bfloat16", 7) == InferenceConfig(dtype="bfloat16", batch_tokens=7)


def test_a_judge_gives_preferences_or_scores() -> None:
    judge = LLMJudge(model="m", endpoint={"id": "m"}, template="t")
    assert judge.gives_preferences
    assert judge.row_schema().names[3:] == ["preferences", "cut_share", "unparsed_share"]
    assert judge.component_names() == ("unparsed_share",)
    scalar = judge.model_copy(update={"mode": "scalar"})
    assert not scalar.gives_preferences
    assert scalar.row_schema() == Remote(computes="x").row_schema()
    assert scalar.component_names() == ()
    assert judge.parents() == {}


def test_stored_specs_keep_their_fields_in_order() -> None:
    kinds = get_args(get_args(Reward)[0])
    fields = {kind.model_fields["kind"].default: " ".join(kind.model_fields) for kind in kinds}
    expected = {
        "rule": "kind function components source_digest sources inputs corruption",
        "classifier": "kind model template template_arguments date corruption dtype batch_tokens",
        "pairwise": "kind model architecture template template_arguments date "
        "max_prompt_tokens max_response_tokens dtype batch_tokens",
        "judge": "kind model endpoint revision mode template orders scale format temperature "
        "max_tokens attempts seed",
        "remote": "kind protocol computes is_told",
        "overlong": "kind max_tokens cache_tokens",
        "repetition": "kind n unit",
        "math": "kind corruption",
        "mix": "kind rewards combine weights",
    }
    assert fields == expected, "add a new kind here; fields of an old one never move or go"
