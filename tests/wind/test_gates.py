"""Gates: which bounds refuse an iteration, which version is the best, and what a recipe may ask."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from wind.config.gates import GateConfig
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError, GateError, WindError
from wind.gates import Refusal, best, lowered, refusals, shown_by, variants
from wind.store.handles import Dataset, Model
from wind.store.versions import Content, Version

RECIPE: dict[str, Any] = {
    "run": "demo",
    "policy": {"path": "base"},
    "prompts": {"source": "prompts.jsonl"},
    "reward": {"kind": "rule", "function": "rules:reward"},
    "training": {"lr": 1e-3},
}


def number(value: float, half: float | None = None) -> dict[str, Any]:
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "n": 8}


def version(place: int, **values: float) -> Version:
    model = Model(fingerprint=f"{place:064x}", parameters=1)
    content = Content(
        iteration=place,
        recipe={},
        datasets={"metrics": Dataset(name="metrics", fingerprint=f"{place:064x}", rows=1)},
        model_in=model,
        model_out=model,
        reference=model,
        previous=None,
    )
    return Version(
        id=content.id(),
        run="demo",
        number=place,
        content=content,
        checks={},
        metrics={name: number(value, 0.05) for name, value in values.items()},
        seconds={},
        published=0.0,
    )


def reason(
    gate: dict[str, Any], metrics: dict[str, Any], *before: Version, **alarms: str | None
) -> str:
    """Why the gate refuses; empty if it does not."""
    named = {name.replace("__", "."): said for name, said in alarms.items()}
    found = refusals({"g": GateConfig.model_validate(gate)}, metrics, named, before)
    return found[0].reason if found else ""


@pytest.mark.parametrize(
    ("gate", "value", "expected"),
    [
        ({"min": 0.3}, 0.3, ""),
        ({"min": 0.3}, 0.29, "accuracy is 0.290 [0.240, 0.340], below 0.3"),
        ({"min": 0.3, "confident": True}, 0.26, ""),
        ({"min": 0.3, "confident": True}, 0.24, "accuracy is 0.240 [0.190, 0.290], below 0.3"),
        ({"max": 0.3}, 0.3, ""),
        ({"max": 0.3}, 0.31, "accuracy is 0.310 [0.260, 0.360], above 0.3"),
        ({"max": 0.3, "confident": True}, 0.34, ""),
        ({"max": 0.3, "confident": True}, 0.36, "accuracy is 0.360 [0.310, 0.410], above 0.3"),
    ],
)
def test_bounds(gate: dict[str, Any], value: float, expected: str) -> None:
    metrics = {"accuracy": number(value, 0.05)}
    assert reason({"metric": "accuracy", **gate}, metrics) == expected


def test_a_drop_is_from_the_best_before_in_the_better_direction() -> None:
    before = version(1, accuracy=0.7, truncated_share=0.2), version(2, accuracy=0.6)
    gate = {"metric": "accuracy", "drop": 0.05}
    assert reason(gate, {"accuracy": number(0.1)}) == ""
    assert reason(gate, {"accuracy": number(0.66)}, *before) == ""
    assert reason(gate, {"accuracy": number(0.64)}, *before) == (
        "accuracy is 0.640, more than 0.05 worse than the best before it, 0.700"
    )
    confident = gate | {"confident": True}
    assert reason(confident, {"accuracy": number(0.64, 0.02)}, *before) == ""
    assert reason(confident, {"accuracy": number(0.62, 0.02)}, *before) != ""
    lower = {"metric": "truncated_share", "drop": 0.1}
    assert reason(lower, {"truncated_share": number(0.1)}, *before) == ""
    assert reason(lower, {"truncated_share": number(0.31)}, *before) != ""


def test_an_alarm_refuses_with_all_of_its_family() -> None:
    tested = {"reward_hacking__gold__initial": "it rose", "length__initial": None}
    assert reason({"alarm": "reward_hacking"}, {}, **tested) == (
        "alarm reward_hacking.gold.initial, it rose"
    )
    assert reason({"alarm": "reward_hacking.gold"}, {}, **tested) != ""
    assert reason({"alarm": "reward_hacking.gold.previous"}, {}, **tested) == ""
    assert reason({"alarm": "length"}, {}, **tested) == ""
    with pytest.raises(ConfigError, match=r"^gates\.g\.alarm: reward_hacking cannot be tested, "):
        reason({"alarm": "reward_hacking"}, {}, length__initial=None)


def test_a_metric_that_is_not_there_is_said_with_those_that_are() -> None:
    metrics = {"win_rate": number(0.5), "benchmark.gsm8k.exact_match": number(0.1)}
    with pytest.raises(
        ConfigError,
        match=r"^gates\.g\.metric is 'accuracy', which this run does not measure: it has win_rate, "
        r"benchmark\.gsm8k\.exact_match$",
    ):
        reason({"metric": "accuracy", "min": 0.1}, metrics)
    # a benchmark is not run in every iteration
    assert reason({"metric": "benchmark.mmlu.acc", "min": 0.1}, metrics) == ""
    with pytest.raises(ConfigError, match=r"benchmark\.gsm8k\.acc"):
        reason({"metric": "benchmark.gsm8k.acc", "min": 0.1}, metrics)


def test_gates_that_stop_come_first_then_the_order_of_the_recipe() -> None:
    gates = {
        "b": GateConfig(metric="win_rate", min=0.9, action="rollback"),
        "a": GateConfig(metric="win_rate", min=0.8, action="rollback"),
        "c": GateConfig(metric="win_rate", min=0.7),
    }
    found = refusals(gates, {"win_rate": number(0.5)}, {}, [])
    assert [refusal.name for refusal in found] == ["c", "b", "a"]


def test_the_best_version() -> None:
    versions = [
        version(1, win_rate=0.6, accuracy=0.7, truncated_share=0.3),
        version(2, win_rate=0.8, accuracy=0.7, truncated_share=0.1),
        version(3, win_rate=0.7),
    ]
    assert best(versions, "win_rate") == versions[1]
    assert best(versions, "truncated_share") == versions[1]
    assert best(versions, "accuracy") == versions[1]  # of two that are equal, the later
    assert best(versions, "mean_reward") == versions[2]  # none has it
    assert best([], "win_rate") is None
    assert shown_by(versions[1], "win_rate") == "demo@2 (win_rate 0.800 [0.750, 0.850])"
    assert shown_by(versions[1], "mean_reward") == "demo@2"
    assert GateConfig(metric="accuracy", min=0).best_by() == "accuracy"
    assert GateConfig(metric="kl_k1", max=9).best_by() == "win_rate"
    assert GateConfig(alarm="length").best_by() == "win_rate"
    assert GateConfig(alarm="length", by="accuracy").best_by() == "accuracy"


def test_a_rollback_lowers_the_learning_rate_and_what_it_can_reach_is_known() -> None:
    half = {"metric": "accuracy", "min": 0.3, "action": "rollback"}
    gates = {"half": half, "tenth": half | {"step": 0.1, "max_rollbacks": 1}, "stop": half}
    gates["stop"] = {"metric": "accuracy", "min": 0.1}
    config = DistillConfig.model_validate(RECIPE | {"gates": gates})
    after = lowered(config, Refusal("tenth", config.gates["tenth"], ""))
    assert after.training.lr == pytest.approx(1e-4)
    assert after.recipe() | {"training": {}} == config.recipe() | {"training": {}}
    assert sorted({each.training.lr for each in variants(config)}) == pytest.approx(
        [2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3]
    )
    assert len({digest.training.lr for digest in variants(config)}) == 6
    (alone,) = variants(DistillConfig.model_validate(RECIPE))
    assert alone.training.lr == 1e-3


def test_gates_are_no_part_of_a_recipe_and_alarms_only_where_they_are_set() -> None:
    plain = DistillConfig.model_validate(RECIPE)
    gated = DistillConfig.model_validate(
        RECIPE | {"gates": {"g": {"metric": "accuracy", "min": 0.3}}}
    )
    assert gated.recipe() == plain.recipe()
    assert gated.defaults() == plain.defaults()
    assert "evaluation" in plain.defaults()
    alarmed = DistillConfig.model_validate(RECIPE | {"evaluation": {"alarms": {}}})
    assert "evaluation.alarms" not in alarmed.defaults()
    assert "evaluation.alarms.level" in alarmed.defaults()
    assert DistillConfig.of_recipe(alarmed.recipe()).evaluation.alarms is not None


HELD_OUT = {"judges": {"held": RECIPE["reward"]}, "alarms": {}}


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"metric": "acuracy", "min": 1}, "gates.g.metric is 'acuracy', which is no metric of"),
        ({"metric": "accuracy"}, "gates.g: it has no bound: give min, max or drop"),
        ({"min": 1}, "gates.g: it names either a metric or an alarm"),
        ({"metric": "accuracy", "alarm": "length"}, "gates.g: it names either a metric or an"),
        ({"alarm": "length", "min": 1}, "gates.g: an alarm has no min: leave it out"),
        ({"alarm": "length", "confident": True}, "gates.g: an alarm has no interval"),
        ({"alarm": "strange"}, "gates.g.alarm is 'strange', which is no alarm of this recipe: "),
        ({"alarm": "reward_hacking.other"}, "gates.g.alarm is 'reward_hacking.other', which is"),
        ({"metric": "kl_k1", "drop": 1}, "gates.g: neither more nor less of kl_k1 is better"),
        ({"alarm": "length", "by": "nothing"}, "gates.g.by is 'nothing', which is no metric"),
        ({"alarm": "length", "by": "kl_k1"}, "gates.g: neither more nor less of kl_k1 is better"),
        (
            {"metric": "win_rate.other.initial", "min": 1},
            "gates.g.metric is 'win_rate.other.initial', which is no metric of this recipe: they",
        ),
        ({"metric": "accuracy", "min": 1, "step": 1}, "gates.g.step is 1; it must be less than 1"),
        ({"metric": "accuracy", "min": 1, "acton": 1}, "gates.g.acton is not a setting; did you"),
    ],
)
def test_a_gate_that_cannot_judge_is_one_line(
    gate: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"evaluation": HELD_OUT, "gates": {"g": gate}}))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: {said}")


def test_an_alarm_needs_the_alarms() -> None:
    with pytest.raises(ValueError, match=r"gates\.g asks for an alarm, and evaluation\.alarms is"):
        DistillConfig.model_validate(RECIPE | {"gates": {"g": {"alarm": "length"}}})


@pytest.mark.parametrize(
    "gate",
    [
        {"metric": "win_rate.held.initial", "min": 0.5},
        {"metric": "lc_win_rate.training.initial", "min": 0.5},
        {"metric": "tie_share.gold.initial", "max": 0.9},
        {"alarm": "reward_hacking.held"},
        {"alarm": "reward_hacking.gold.previous"},
        {"alarm": "length.moved.initial", "by": "accuracy"},
    ],
)
def test_what_a_recipe_measures_can_be_judged(gate: dict[str, Any]) -> None:
    config = DistillConfig.model_validate(RECIPE | {"evaluation": HELD_OUT, "gates": {"g": gate}})
    assert config.gates["g"].action == "stop"


def test_a_stop_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in WindError.__subclasses__()]
    assert codes.count(GateError.exit_code) == 1
    assert GateError.exit_code == 4
