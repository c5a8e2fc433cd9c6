"""The table of metrics: every row is complete, and nothing else names metrics."""

import pytest

from wind.metric_table import METRICS, metric_named, shown_in


def test_titles_and_labels_tell_metrics_apart() -> None:
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)
    assert len({metric.axis_label() for metric in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("win_rate", "win rate"),
        ("kl_k1", "KL to the initial policy, nats"),
        ("entropy_per_token", "entropy, nats per token"),
        ("distinct_2", "distinct bigrams, share"),
    ],
)
def test_an_axis_says_the_unit(name: str, label: str) -> None:
    assert METRICS[name].axis_label() == label


def test_what_is_shown_without_being_asked_for() -> None:
    assert [metric.title for metric in shown_in("versions")] == [
        "win rate",
        "reward",
        "gold accuracy",
        "gain",
        "KL",
        "length",
    ]
    assert [metric.name for metric in shown_in("report")] == ["win_rate", "accuracy", "kl_k1"]


@pytest.mark.parametrize(
    ("name", "title", "label"),
    [
        ("accuracy", "gold accuracy", "gold accuracy"),
        ("win_rate.held_out.initial", "win rate: held_out, initial", "win rate: held_out, initial"),
        (
            "lc_win_rate.gold.sft",
            "LC win rate: gold, sft",
            "length-controlled win rate: gold, sft",
        ),
        ("benchmark.gsm8k.exact_match", "gsm8k, exact_match", "gsm8k, exact_match"),
    ],
)
def test_a_metric_of_a_family_is_named_by_what_it_is_about(
    name: str, title: str, label: str
) -> None:
    metric = metric_named(name)
    assert (metric.name, metric.title, metric.axis_label()) == (name, title, label)


@pytest.mark.parametrize("name", ["unheard", "win_rate.", "accuracy.held_out", "unheard.of"])
def test_no_metric_is_made_up(name: str) -> None:
    with pytest.raises(KeyError):
        metric_named(name)
