"""Gates: which of them an iteration does not pass, and where a run goes on from there.

All of it follows from the config and from the records of versions. So a rerun, a resumed run and a
plan take the same path.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wind.config.gates import GateConfig
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError
from wind.metric_table import Metric, metric_named
from wind.store.versions import Version

# The family of metrics that not every iteration measures.
NOT_ALWAYS: Final = "benchmark"

Numbers = Mapping[str, Mapping[str, Any]]  # value, low, high, n by metric


@dataclass(frozen=True)
class Refusal:
    """A gate that an iteration did not pass."""

    name: str
    gate: GateConfig
    reason: str

    def says(self) -> str:
        """Return one line for people."""
        return f"gate {self.name} refuses it: {self.reason}"


def refusals(
    gates: Mapping[str, GateConfig],
    metrics: Numbers,
    alarms: Mapping[str, str | None],
    before: Sequence[Version],
) -> list[Refusal]:
    """Return the gates that an iteration does not pass; those that stop come first.

    `alarms` has a message for each one that was raised, None for the other ones. `before` are the
    versions that the iteration continues. Raises ConfigError for a metric or an alarm that is not
    there.
    """
    found = []
    for name, gate in gates.items():
        if gate.alarm is not None:
            reason = _alarm(name, gate.alarm, alarms)
        else:
            reason = _beyond(name, gate, metrics, [version.metrics for version in before])
        if reason:
            found.append(Refusal(name, gate, reason))
    return sorted(found, key=lambda refusal: refusal.gate.action != "stop")


def best(versions: Sequence[Version], metric: str) -> Version | None:
    """Return the best version by `metric`: of equal ones, and where none has it, the last."""
    sign = -1 if metric_named(metric).better == "lower" else 1
    measured = [version for version in versions if _value(version.metrics, metric) is not None]
    return max(
        measured[::-1] or versions[-1:],
        key=lambda version: sign * (_value(version.metrics, metric) or 0.0),
        default=None,
    )


def shown_by(version: Version, metric: str) -> str:
    """Return the name of a version and its number, such as `demo@2 (accuracy 0.727)`."""
    name, entry = f"{version.run}@{version.number}", version.metrics.get(metric)
    return f"{name} ({metric} {_number(entry, metric_named(metric))})" if entry else name


def lowered(config: DistillConfig, refusal: Refusal) -> DistillConfig:
    """Return the config that goes on after a rollback: its learning rate is a step smaller."""
    training = config.training.model_copy(update={"lr": config.training.lr * refusal.gate.step})
    return config.model_copy(update={"training": training})


def variants(config: DistillConfig) -> Iterator[DistillConfig]:
    """Yield the config with every learning rate that its gates can bring it to."""
    left = {
        name: gate.max_rollbacks for name, gate in config.gates.items() if gate.action == "rollback"
    }
    waiting, known = [(config, left)], set()
    while waiting:
        each, left = waiting.pop(0)
        if (mark := (each.training.lr, *left.values())) in known:
            continue
        known.add(mark)
        yield each
        waiting += [
            (lowered(each, Refusal(name, config.gates[name], "")), {**left, name: count - 1})
            for name, count in left.items()
            if count
        ]


def _alarm(gate: str, wanted: str, alarms: Mapping[str, str | None]) -> str:
    """Return why the alarm or alarms `wanted` refuse, empty if they do not."""
    tested = {name: said for name, said in alarms.items() if f"{name}.".startswith(f"{wanted}.")}
    # the first iteration has none before it
    if not tested and not wanted.endswith(".previous"):
        raise ConfigError(
            f"gates.{gate}.alarm: {wanted} cannot be tested, since no judge is there besides the "
            f"training reward (tested: {', '.join(alarms)}): give prompts answers, or name one in "
            "evaluation.judges"
        )
    return next((f"alarm {name}, {said}" for name, said in tested.items() if said), "")


def _beyond(gate: str, config: GateConfig, metrics: Numbers, before: Sequence[Numbers]) -> str:
    """Return why the metric of `config` refuses, empty if it does not."""
    assert config.metric is not None
    entry = metrics.get(config.metric)
    if entry is None or entry["value"] is None:
        if config.metric.startswith(f"{NOT_ALWAYS}.") and not _is_measured(config.metric, metrics):
            return ""
        raise ConfigError(
            f"gates.{gate}.metric is {config.metric!r}, which this run does not measure: it has "
            f"{', '.join(metrics)}"
        )
    metric = metric_named(config.metric)
    low, high = (
        (entry["low"], entry["high"])
        if config.confident and entry["low"] is not None
        else (entry["value"], entry["value"])
    )
    said = f"{config.metric} is {_number(entry, metric)}"
    if config.min is not None and high < config.min:
        return f"{said}, below {config.min:g}"
    if config.max is not None and low > config.max:
        return f"{said}, above {config.max:g}"
    earlier = [value for each in before if (value := _value(each, config.metric)) is not None]
    if config.drop is None or not earlier:
        return ""
    is_lower_better = metric.better == "lower"
    top = min(earlier) if is_lower_better else max(earlier)
    worse = low - top if is_lower_better else top - high
    if worse <= config.drop:
        return ""
    return (
        f"{said}, more than {config.drop:g} worse than the best before it, {top:.{metric.digits}f}"
    )


def _is_measured(metric: str, metrics: Numbers) -> bool:
    """Tell whether this iteration has any metric of the same benchmark."""
    benchmark = metric.rpartition(".")[0]
    return any(name.startswith(f"{benchmark}.") for name in metrics)


def _value(metrics: Numbers, name: str) -> float | None:
    return metrics.get(name, {}).get("value")


def _number(entry: Mapping[str, Any], metric: Metric) -> str:
    value = f"{entry['value']:.{metric.digits}f}"
    if entry["low"] is None:
        return value
    return f"{value} [{entry['low']:.{metric.digits}f}, {entry['high']:.{metric.digits}f}]"
