"""`wind bandit` on a study small enough to run in seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Wind = Callable[..., tuple[int, str, str]]

TINY = (
    "prompts=2",
    "responses=4",
    "iterations=4",
    "samples=[3]",
    "visits=1",
    "repeats=1",
    "floor_iterations=3",
    "floor_repeats=1",
    "floor_prompts=[2,4,8]",
    "floor_samples=[2,3,4]",
    "floor_at_prompts=4",
    "floor_at_samples=3",
)
SETTINGS = [word for setting in TINY for word in ("--set", f"bandit.{setting}")]
FIGURES = ("exact", "floor", "sampled", "win_rate")


def test_the_study_is_two_checked_datasets_and_the_same_figures_every_time(wind: Wind) -> None:
    code, out, line = wind("bandit", "--out", "first", "--json", *SETTINGS)
    assert code == 0
    assert line.startswith("2 datasets computed, 0 from the cache")
    made = json.loads(out)
    assert set(made) == {"bandit", "rates"}
    names = sorted(
        [*(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")), "tables.md"]
    )
    assert sorted(path.name for path in Path("first").iterdir()) == names

    code, _, line = wind("bandit", "--out", "second", *SETTINGS)
    assert line.startswith("0 datasets computed, 2 from the cache")
    assert [Path("second", name).read_bytes() for name in names] == [
        Path("first", name).read_bytes() for name in names
    ]

    code, out, _ = wind("verify", "--json")
    assert code == 0
    assert json.loads(out)["findings"] == []
    assert json.loads(out)["bytes"] > 0
    digits = made["rates"]["fingerprint"][:12]
    code, out, _ = wind(
        "rows", f"rates/{digits}", "--where", "quantity = 'contraction_proven'", "--json"
    )
    assert {round(row["value"], 9) for row in json.loads(out)} == {0.8, round(1 / 1.0625, 9)}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("bandit.response=4", "bandit.response is not a setting; did you mean bandit.responses?"),
        ("bandit.samples=[1]", "bandit.samples.0 is 1; it must be greater than or equal to 2"),
        (
            "bandit.floor_samples=[2,4]",
            "bandit: floor_prompts and floor_samples need three different values each",
        ),
        (
            "bandit.floor_at_prompts=3",
            "bandit: floor_prompts and floor_at_prompts must be multiples of prompts, 4",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(wind: Wind, setting: str, says: str) -> None:
    code, _, line = wind("bandit", "--set", setting)
    assert code == 2
    assert says in line
    assert not Path("docs").exists()
