"""What is fit to be compared, and the grid of a sweep."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.grid import grid, read_recipes
from tests.flows.conftest import write_recipe
from wind.config.loading import alternatives
from wind.errors import ConfigError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a recipe NAME.yaml whose sections are changed by keyword."""
    content = yaml.safe_load(write_recipe(tmp_path, Path("model")).read_text())

    def make(name: str, **sections: object) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content | {"run": name} | sections))
        return path

    return make


def test_a_grid_is_the_product_of_its_axes(write: Write) -> None:
    cells = grid(write("a"), ["seed=7"], ["objective.beta=0.1,1", "objective.eta=2,3,5"])
    assert [(cell.config.objective.beta, cell.config.objective.eta) for cell in cells] == [  # type: ignore[union-attr]
        (0.1, 2.0),
        (0.1, 3.0),
        (0.1, 5.0),
        (1.0, 2.0),
        (1.0, 3.0),
        (1.0, 5.0),
    ]
    assert cells[4].setting == "beta=1 eta=3"
    assert cells[4].values == {"objective.beta": 1, "objective.eta": 3}
    assert cells[4].seeded(9).run == "a-beta_1_eta_3-s9"
    assert cells[4].seeded(9).seed == 9
    assert len({cell.seeded(0).run for cell in cells}) == 6


def test_settings_of_equal_last_names_are_told_apart(write: Write) -> None:
    (cell,) = grid(
        write("a"), [], ["sampling.samples_per_prompt=4", "evaluation.samples_per_prompt=2"]
    )
    assert cell.setting == "sampling.samples_per_prompt=4 evaluation.samples_per_prompt=2"
    assert len(cell.seeded(0).run) <= 64


def test_a_recipe_without_axes_is_one_cell(write: Write) -> None:
    (cell,) = grid(write("a"), [], [])
    assert (cell.setting, cell.values, cell.seeded(3).run) == ("", {}, "a-s3")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("training.lr=1e-4,3e-4", ["1e-4", "3e-4"]),
        ("a.b=1", [1]),
        (
            "objective={name: dpo, beta: 0.1},{name: ipo}",
            [{"name": "dpo", "beta": 0.1}, {"name": "ipo"}],
        ),
        ("reward.components=[a, b],[]", [["a", "b"], []]),
        ("reward.corruption=null,{noise: 1}", [None, {"noise": 1}]),
    ],
)
def test_alternatives_are_yaml(option: str, values: list[object]) -> None:
    assert alternatives(option) == (option.partition("=")[0], values)


@pytest.mark.parametrize(
    "option", ["training.lr", "training.lr=", "=1,2", "training.lr=1,1", "training.lr=[1"]
)
def test_an_option_that_lists_nothing_is_one_line(option: str) -> None:
    with pytest.raises(ConfigError, match=r"'.*'") as raised:
        alternatives(option)
    assert "\n" not in str(raised.value)


def test_the_same_axis_twice_is_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match="a setting is listed twice"):
        grid(write("a"), [], ["training.lr=1,2", "training.lr=3"])


def test_seeds_are_no_axis(write: Write) -> None:
    with pytest.raises(ConfigError, match="seed is not a setting to choose between"):
        grid(write("a"), [], ["seed=1,2"])


def test_algorithms_may_differ_in_what_makes_an_algorithm(write: Write) -> None:
    paths = [
        write("a"),
        write(
            "b",
            objective={"name": "dpo"},
            reference={"kind": "previous"},
            training={"lr": 0.1},
            seed=5,
        ),
        write("c", win_rate={"estimator": "self_counting"}),
    ]
    trials = read_recipes(paths, [], ["training.lr=1e-3,1e-2"])
    assert [[cell.setting for cell in cells] for cells in trials] == [["lr=1e-3", "lr=1e-2"]] * 3
    assert [cells[1].config.training.lr for cells in trials] == [0.01] * 3


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"iterations": 2}, "b.yaml has iterations 2 and "),
        (
            {"evaluation": {"samples_per_prompt": 3, "bootstrap_samples": 100}},
            "b.yaml has evaluation.samples_per_prompt 3 and ",
        ),
        (
            {"reward": {"kind": "rule", "function": "tiny_reward:others"}},
            "b.yaml has reward.function 'tiny_reward:others' and ",
        ),
        ({"root": "elsewhere"}, "b.yaml has root 'elsewhere' and "),
    ],
)
def test_a_disagreement_names_the_setting_and_both_values(
    write: Write, sections: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        read_recipes([write("a"), write("b", **sections)], [], [])
    assert says in str(raised.value)
    assert "a.yaml has" in str(raised.value)


def test_two_recipes_of_one_name_are_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml and .*b\.yaml are both called a"):
        read_recipes([write("a"), write("b", run="a")], [], [])


def test_win_rates_must_be_against_one_policy(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.against is 'reference'"):
        grid(write("a"), ["evaluation.against=reference"], [])
