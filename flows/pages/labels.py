"""What pages call metrics, judges and opponents, in which order, and how they write numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from wind.config.base import setting_of
from wind.metric_table import METRICS, Metric, metric_named
from wind.store.versions import Version

# what is a share, and shown in percent
SHARES: Final = frozenset(
    {"win_rate", "lc_win_rate", "accuracy", "accuracy_gain", "accuracy_reference"}
)
# the order in which people ask, by metric or family; the others follow in the order of the table
FIRST: Final = ("win_rate", "lc_win_rate", "accuracy", "benchmark")


def names(versions: Sequence[Version]) -> list[str]:
    """Return the names of all metrics of `versions`, once each, those that decide first.

    The win rate of the training reward has two names where opponents are named; it is here by the
    short one.
    """
    found = dict.fromkeys(name for version in versions for name in version.metrics)
    found.pop(f"win_rate.training.{against(versions[-1])}", None)
    order = [*FIRST, *METRICS]
    return sorted(
        found,
        key=lambda name: (
            order.index(family) if (family := name.partition(".")[0]) in order else len(order)
        ),
    )


def against(version: Version) -> str:
    """Return whom the evaluation of `version` compares with: `initial` or `reference`."""
    return str(setting_of(version.content.recipe, "evaluation.against") or "initial")


def judge_and_opponent(name: str, version: Version) -> tuple[str, str]:
    """Return who judges and who is compared with, of a win rate's name."""
    judge, _, opponent = name.partition(".")[2].partition(".")
    return (judge, opponent) if judge else ("training", against(version))


def judged_by(judge: str) -> str:
    """Return what people call a judge."""
    return {"training": "the training reward", "gold": "gold answers"}.get(judge, judge)


def label(judge: str) -> str:
    """Return what people call a judge, where there is little room."""
    return judged_by(judge).removeprefix("the ")


def compared_with(opponent: str) -> str:
    """Return what people call an opponent."""
    policies = {
        "initial": "the initial policy",
        "reference": "the reference",
        "previous": "the iteration before",
    }
    return policies.get(opponent, opponent)


def known(name: str) -> Metric:
    """Return the metric called `name`; one of a later release is called by its name."""
    try:
        return metric_named(name)
    except KeyError:
        return Metric(name=name, title=name)


def longer_title(metric: Metric) -> str:
    """Return the title of a metric where there is room."""
    return max(metric.title, metric.label, key=len)


def is_share(name: str) -> bool:
    """Tell whether a metric is a share, to be shown in percent."""
    family = name.partition(".")[0]
    return family in SHARES or family.endswith("_share")


def number(name: str, value: float) -> str:
    """Return the value of a metric as people read it."""
    return f"{value:.1%}" if is_share(name) else f"{value:.{known(name).digits}f}"


def between(name: str, entry: Mapping[str, Any]) -> str:
    """Return the interval of a metric, empty if it has none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    low, high = number(name, entry["low"]), number(name, entry["high"])
    return f"{low.removesuffix('%')} to {high}"


def difference(name: str, before: float, after: float) -> str:
    """Return by how much a metric moved, shares in percentage points."""
    moved = 100 * (after - before) if is_share(name) else after - before
    digits = 1 if is_share(name) else known(name).digits
    if round(moved, digits) == 0:
        return "unchanged"
    text = f"{moved:+.{digits}f}".replace("-", "−")
    return f"{text} points" if is_share(name) else text
