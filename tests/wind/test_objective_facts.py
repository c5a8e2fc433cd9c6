"""The facts of each objective are complete and true."""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.wind.objective_case import CASES, config_of, gradient_of, loss_of, random_batch
from wind.config import objectives
from wind.config.objective_facts import Facts, ObjectiveSection
from wind.config.objectives import ON_POLICY, SECTIONS
from wind.objectives import OBJECTIVES

METHOD = Path(__file__).parents[2] / "docs" / "method.md"
every = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())


def test_a_section_without_facts_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"^Forgetful does not set `facts`: The rows it trains on"):

        class Forgetful(ObjectiveSection):
            name: Literal["forgetful"]


def test_an_anchored_section_also_says_how_many_samples_of_its_anchor_it_needs() -> None:
    with pytest.raises(TypeError, match=r"^Forgetful does not set `least_anchor_samples`: The few"):

        class Forgetful(objectives.AnchoredObjectiveConfig):
            name: Literal["forgetful"]
            facts: ClassVar = Facts(
                rows=("all",), least_samples=2, minimum="none", compares_all_rows=True
            )


@pytest.mark.parametrize("forgotten", ["rows", "least_samples", "minimum", "compares_all_rows"])
def test_no_fact_has_a_default(forgotten: str) -> None:
    facts: dict[str, Any] = {
        "rows": ("all",),
        "least_samples": 2,
        "minimum": "none",
        "compares_all_rows": False,
    }
    del facts[forgotten]
    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{forgotten}'"):
        Facts(**facts)


def test_section_loss_test_case_and_row_of_the_method_belong_together() -> None:
    gc.collect()  # the classes that were refused above
    places = {
        "ObjectiveSection (a section of wind/config/objectives.py)": {
            section.model_fields["name"].annotation.__args__[0]
            for section in descendants(ObjectiveSection)
            if section.model_fields["name"].annotation is not str
        },
        "AnyObjectiveConfig (the union in wind/config/objectives.py)": set(SECTIONS),
        "OBJECTIVES (the mapping in wind/objectives/__init__.py)": set(OBJECTIVES),
        "CASES (tests/wind/objective_case.py)": {case["name"] for case in CASES.values()},
        "the table of section 3 in docs/method.md": set(rows_of_method()),
    }
    every_name = set[str]().union(*places.values())
    missing = [
        f"{name} is missing from {place}"
        for place, names in places.items()
        for name in sorted(every_name - names)
    ]
    assert not missing, "; ".join(missing)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_method_gives_the_rows_and_the_samples_of_the_section(name: str) -> None:
    facts = config_of(name=name).facts
    least, rows = rows_of_method()[name]
    assert rows == ", ".join(f"`{selection}`" for selection in facts.rows)
    assert least.split(";")[0] in (str(facts.least_samples), "`n`")


@every
def test_a_quadratic_loss_has_a_gradient_linear_in_the_log_probabilities(
    settings: dict[str, Any],
) -> None:
    minimum = config_of(**settings).facts.minimum
    a_B, batch = random_batch(seed=1)
    b_B = a_B + torch.linspace(-3, 3, len(a_B), dtype=torch.float64)
    ends = [gradient_of(logps_B, batch, **settings) for logps_B in (a_B, b_B)]
    halfway = gradient_of((a_B + b_B) / 2, batch, **settings)
    is_linear = torch.allclose((ends[0] + ends[1]) / 2, halfway, atol=1e-12)
    is_curved = not torch.allclose(ends[0], ends[1])
    if minimum == "quadratic":
        assert is_linear
        assert is_curved
    if minimum == "other":
        assert not is_linear


@every
def test_rows_are_compared_with_all_rows_where_the_section_says_so(
    settings: dict[str, Any],
) -> None:
    logps_B, batch = random_batch(seed=2, sizes=[6] * 5)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        loss_of(logps_B, batch, **settings)
    is_squared = largest.elements >= len(logps_B) ** 2
    assert config_of(**settings).facts.compares_all_rows == is_squared


def test_facts_that_depend_on_parameters() -> None:
    assert config_of(name="wind").facts.rows == ("all", "best_worst", "best_random")
    assert config_of(name="wind", shift="plug_in").facts.rows == ("all",)
    assert config_of(name="wind", risk="kl").facts.minimum == "other"
    assert config_of(name="wind", shift="learned").learns_intercept
    assert not config_of(name="wind").learns_intercept
    assert config_of(name="bond", n=4).facts.least_samples == 4
    assert config_of(name="jbond").facts.least_samples == 3


def test_anchored_objectives_draw_of_the_anchor_only_afresh() -> None:
    stored, fresh = config_of(name="bond", n=4), config_of(name="bond", n=4, refresh_steps=2)
    assert (stored.draws_from_anchor, fresh.draws_from_anchor) == (False, True)
    assert (stored.steps_per_refresh, fresh.steps_per_refresh) == (None, 2)
    assert (stored.least_anchor_samples, fresh.least_anchor_samples) == (0, 4)
    assert fresh.facts.least_samples == 1
    assert (stored.anchor_samples_for(5), fresh.anchor_samples_for(5)) == (0, 5)
    assert config_of(name="jbond", refresh_steps=1, anchor_samples=2).anchor_samples_for(5) == 2
    assert config_of(name="jbond", refresh_steps=1).least_anchor_samples == 2


def test_objectives_on_policy_are_those_with_a_refresh() -> None:
    assert ON_POLICY == ("bond", "jbond", "grpo", "rloo")
    assert config_of(name="grpo", refresh_steps=3).steps_per_refresh == 3
    assert not config_of(name="grpo", refresh_steps=3).draws_from_anchor
    assert config_of(name="raft").steps_per_refresh is None


def test_the_loss_gets_every_field_but_those_about_sampling() -> None:
    config = config_of(name="bond", refresh_steps=1, anchor_samples=3)
    assert config.parameters() == {"n": 2, "jeffreys": 0.5}


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the number of elements of the largest tensor computed."""

    elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def descendants(section: Any) -> list[Any]:
    below = section.__subclasses__()
    return [*below, *(each for child in below for each in descendants(child))]


def rows_of_method() -> dict[str, tuple[str, str]]:
    """Return the cells `least N` and `rows` of docs/method.md by objective."""
    lines = METHOD.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| name | fits the update |"))
    found: dict[str, tuple[str, str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        names, _, least, rows, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {name.strip("` "): (least, rows) for name in names.split(",")}
    return found
