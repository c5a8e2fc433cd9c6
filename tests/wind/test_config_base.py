"""What a section leaves out of keys and ids: its settings at their defaults, so that a later
release may add some.
"""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from wind.config.base import Section, at_defaults, setting_of, without, without_defaults
from wind.config.loading import evaluation_config, load_config
from wind.config.recipe import DistillConfig
from wind.config.sampling import SamplingConfig
from wind.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


class Inner(Section):
    rate: float = 0.5
    names: tuple[str, ...] = ()


class Chosen(Section):
    kind: Literal["chosen"] = "chosen"
    rank: int = 16


class Outer(Section):
    path: str
    steps: int = 3
    inner: Inner = Inner()
    maybe: Chosen | None = None
    table: dict[str, Any] = Field(default_factory=dict)


def chosen(section: Section) -> dict[str, Any]:
    dumped = section.model_dump(mode="json")
    return without(dumped, list(at_defaults(section, dumped)))


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (Outer(path="here"), {"path": "here"}),
        (Outer(path="here", steps=3, inner=Inner(rate=0.5)), {"path": "here"}),
        (Outer(path="here", steps=4), {"path": "here", "steps": 4}),
        (
            Outer(path="here", inner=Inner(names=("rate",))),
            {"path": "here", "inner": {"names": ["rate"]}},
        ),
        (Outer(path="here", maybe=Chosen()), {"path": "here", "maybe": {"kind": "chosen"}}),
        (
            Outer(path="here", table={"steps": 3, "inner": {"rate": 0.5}}),
            {"path": "here", "table": {"steps": 3, "inner": {"rate": 0.5}}},
        ),
    ],
)
def test_a_section_is_what_was_chosen_in_it(section: Section, expected: dict[str, Any]) -> None:
    assert chosen(section) == expected
    assert without_defaults(section) == expected


class LaterSampling(SamplingConfig):
    jitter: float = 0.0


class LaterConfig(DistillConfig):
    """The config of a release that added a setting to a section, one beside the sections, and a
    section.
    """

    sampling: SamplingConfig = LaterSampling()
    gate: Inner = Inner()
    patience: int = 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_the_same_under_a_release_that_adds_settings(path: Path) -> None:
    now = load_config(path)
    fields = {name: getattr(now, name) for name in DistillConfig.model_fields}
    later = LaterConfig.model_construct(
        **fields | {"sampling": LaterSampling(**now.sampling.model_dump())}
    )
    assert later.recipe() != now.recipe()
    assert without(later.recipe(), later.defaults()) == without(now.recipe(), now.defaults())
    assert without_defaults(later) == without_defaults(now)
    chosen = later.model_copy(update={"patience": 8})
    assert without(chosen.recipe(), chosen.defaults()) != without(now.recipe(), now.defaults())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_chose_gives_all_of_it_back(path: Path) -> None:
    config = load_config(path)
    assert (
        DistillConfig.of_recipe(without(config.recipe(), config.defaults())).recipe()
        == config.recipe()
    )


@pytest.mark.parametrize(
    "recorded", [{}, {"reward": "x"}, {"reward": None}, {"reward": ["components"]}, {"reward": {}}]
)
def test_a_setting_of_a_recipe_of_any_form(recorded: dict[str, Any]) -> None:
    assert setting_of(recorded, "reward.components") is None
    assert setting_of({"reward": {"components": ["a"]}}, "reward.components") == ["a"]


MIXED = (
    "reward={kind: mix, rewards: {tone: {kind: classifier, path: /models/tone}, "
    "brief: {kind: rule, function: 'rewards:f', timeout: 5, components: [words]}}, "
    "weights: {tone: 2, brief: 1}}"
)


def test_a_mix_is_recorded_without_paths_and_defaults() -> None:
    inner = "{kind: classifier, path: /models/other}"
    judge = f"evaluation.judges.both={{kind: mix, combine: min, rewards: {{b: {inner}}}}}"
    config = load_config(RECIPES[0], [MIXED, judge])
    chosen = without(config.recipe(), config.defaults())
    assert chosen["reward"] == {
        "kind": "mix",
        "rewards": {
            "brief": {"kind": "rule", "function": "rewards:f", "components": ["words"]},
            "tone": {"kind": "classifier"},
        },
        "weights": {"tone": 2},
    }
    assert chosen["evaluation"]["judges"] == {
        "both": {"kind": "mix", "combine": "min", "rewards": {"b": {"kind": "classifier"}}}
    }
    assert DistillConfig.of_recipe(chosen).recipe() == config.recipe()
    # the order in which a file names them does not matter
    assert list(config.reward.component_names()) == ["brief", "brief.words", "tone"]
    assert config.reward.seconds_per_call() == 5


JUDGED = [
    "evaluation.judges.held_out={kind: classifier, path: /models/other}",
    "evaluation.judges.rule={kind: rule, function: 'rewards:f', timeout: 5}",
    "evaluation.opponents.sft={kind: model, path: /models/sft}",
]


def test_judges_and_opponents_are_recorded_without_paths_and_defaults() -> None:
    config = load_config(RECIPES[0], JUDGED)
    chosen = without(config.recipe(), config.defaults())
    assert chosen["evaluation"]["judges"] == {
        "held_out": {"kind": "classifier"},
        "rule": {"kind": "rule", "function": "rewards:f"},
    }
    assert chosen["evaluation"]["opponents"] == {"sft": {"kind": "model"}}
    assert "repeat_judges" not in chosen["evaluation"]
    assert DistillConfig.of_recipe(chosen).recipe() == config.recipe()


def test_an_opponent_has_a_name_of_its_own() -> None:
    opponent = "{kind: policy, policy: initial}"
    reference = "evaluation.against=reference"
    config = load_config(RECIPES[0], [reference, f"evaluation.opponents.initial={opponent}"])
    assert [*config.evaluation.opponents] == ["initial"]
    with pytest.raises(ConfigError, match=r"evaluation: opponents\.initial has the name of what"):
        load_config(RECIPES[0], [f"evaluation.opponents.initial={opponent}"])


class Seeded(Section):
    kind: Literal["seeded"] = "seeded"
    seed: int = 4


def test_judges_with_a_seed_are_repeated_with_the_next_one() -> None:
    config = load_config(RECIPES[0], JUDGED)
    judges = {**config.evaluation.judges, "llm": Seeded()}
    for repeats, seeds in ((False, {}), (True, {"llm": 5})):
        judging = {"judges": judges, "repeat_judges": repeats}
        evaluation = config.evaluation.model_copy(update=judging)
        asked = config.model_copy(update={"evaluation": evaluation}).repeated_sections()
        assert {name: section.model_dump()["seed"] for name, section in asked.items()} == seeds


def test_the_config_of_an_evaluation_alone_is_a_recipe_under_another_name() -> None:
    recipe, alone = load_config(RECIPES[0]), evaluation_config("a/b c@2", RECIPES[0], ["seed=3"])
    assert alone == recipe.model_copy(update={"run": "evaluate-b-c-2", "seed": 3})
    settings = ["prompts.source=p.jsonl", "reward={kind: rule, function: 'r:f'}", "run=mine"]
    bare = evaluation_config("org/model", None, settings)
    assert (bare.run, bare.policy.path) == ("mine", "org/model")
    with pytest.raises(ConfigError, match=r"^--set: prompts is required and missing"):
        evaluation_config("org/model", None, settings[1:])
