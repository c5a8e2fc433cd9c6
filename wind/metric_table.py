"""The table of metrics: titles, units, digits, and better directions.

Everything that shows metrics reads this table; `wind.metrics` computes them. It imports nothing
heavy, so that a command can start without polars.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

View = Literal["versions", "diff", "report", "manifest"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric and how it is shown."""

    name: str
    title: str  # of a table column
    label: str = ""  # of a figure's axis, without the unit; the title if empty
    unit: str = ""  # empty for shares and counts whose label says what they are
    digits: int = 3  # after the decimal point
    better: Literal["higher", "lower"] | None = None  # None: neither is better in itself
    # where the metric is shown without being asked for: `wind versions`, the iterations of
    # `wind diff`, every comparison report, the manifest of its dataset
    shown_in: tuple[View, ...] = ()

    def axis_label(self) -> str:
        """Return the label of a figure's axis, with the unit."""
        label = self.label or self.title
        return f"{label}, {self.unit}" if self.unit else label


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric(
            name="win_rate",
            title="win rate",
            better="higher",
            shown_in=("versions", "diff", "report", "manifest"),
        ),
        Metric(
            name="mean_reward",
            title="reward",
            label="mean reward",
            better="higher",
            shown_in=("versions", "diff", "manifest"),
        ),
        Metric(
            name="accuracy",
            title="gold accuracy",
            better="higher",
            shown_in=("versions", "diff", "report"),
        ),
        Metric(
            name="accuracy_gain",
            title="gain",
            label="gain in gold accuracy",
            better="higher",
            shown_in=("versions", "manifest"),
        ),
        Metric(
            name="kl_k1",
            title="KL",
            label="KL to the initial policy",
            unit="nats",
            shown_in=("versions", "diff", "report", "manifest"),
        ),
        Metric(
            name="response_tokens",
            title="length",
            label="tokens per response",
            digits=1,
            shown_in=("versions", "diff"),
        ),
        Metric(
            name="kl_k3",
            title="KL, k3",
            label="KL to the initial policy by k3",
            unit="nats",
        ),
        Metric(name="entropy", title="entropy", unit="nats per response", digits=2),
        Metric(
            name="entropy_per_token",
            title="entropy per token",
            label="entropy",
            unit="nats per token",
        ),
        Metric(name="distinct_1", title="distinct-1", label="distinct unigrams", unit="share"),
        Metric(name="distinct_2", title="distinct-2", label="distinct bigrams", unit="share"),
        Metric(name="distinct_3", title="distinct-3", label="distinct trigrams", unit="share"),
        Metric(
            name="distinct_responses",
            title="distinct responses",
            label="distinct responses per prompt",
            digits=2,
        ),
        Metric(name="tie_share", title="ties", label="share of ties"),
        Metric(
            name="truncated_share",
            title="truncated",
            label="share of truncated responses",
            better="lower",
        ),
        Metric(
            name="mean_reward_reference",
            title="reference reward",
            label="mean reward of the reference",
        ),
        Metric(
            name="accuracy_reference",
            title="reference accuracy",
            label="gold accuracy of the reference",
        ),
        Metric(
            name="train_reward",
            title="training reward",
            label="mean reward on the training prompts",
            better="higher",
        ),
        Metric(
            name="train_tie_share",
            title="training ties",
            label="share of ties on the training prompts",
        ),
        Metric(name="loss", title="loss", label="training loss", better="lower"),
        Metric(
            name="kl_previous_k1",
            title="KL to previous",
            label="KL to the policy before",
            unit="nats",
        ),
        Metric(
            name="kl_previous_k3",
            title="KL to previous, k3",
            label="KL to the policy before by k3",
            unit="nats",
        ),
        Metric(
            name="kl_reference_k1",
            title="KL to reference",
            label="KL to the reference of the update",
            unit="nats",
        ),
        Metric(
            name="kl_reference_k3",
            title="KL to reference, k3",
            label="KL to the reference of the update by k3",
            unit="nats",
        ),
        Metric(
            name="logp_gap",
            title="logp gap",
            label="gap between sampler and trainer",
            unit="nats per token",
            digits=5,
            better="lower",
        ),
        Metric(name="self_bleu", title="self-BLEU", label="self-BLEU of siblings"),
        Metric(
            name="repetition",
            title="repetition",
            label="repeated 4-grams",
            unit="share",
            better="lower",
        ),
        Metric(name="eos_share", title="ended", label="share ended by a stop token"),
        Metric(name="empty_share", title="empty", label="share of empty responses", better="lower"),
        Metric(name="refusal_share", title="refusals", label="share of refusals"),
        Metric(
            name="tied_prompts_share",
            title="tied prompts",
            label="share of prompts whose responses all tie",
        ),
        Metric(
            name="train_tied_prompts_share",
            title="tied training prompts",
            label="share of training prompts whose responses all tie",
            better="lower",
        ),
        Metric(name="reward_p10", title="reward, p10", label="10th percentile of the reward"),
        Metric(name="reward_p50", title="reward, p50", label="median reward"),
        Metric(name="reward_p90", title="reward, p90", label="90th percentile of the reward"),
        Metric(
            name="response_tokens_p10",
            title="length, p10",
            label="10th percentile of tokens per response",
            digits=0,
        ),
        Metric(
            name="response_tokens_p50",
            title="length, p50",
            label="median tokens per response",
            digits=0,
        ),
        Metric(
            name="response_tokens_p90",
            title="length, p90",
            label="90th percentile of tokens per response",
            digits=0,
        ),
        Metric(
            name="win_rate_reliability",
            title="reliability",
            label="reliability of the training win rates",
            better="higher",
        ),
    )
}


# Metrics whose number depends on the recipe. Each is named by its family and, after a dot, by what
# it is about: win_rate.held_out.initial, benchmark.gsm8k.exact_match.
FAMILIES: Final = {
    family.name: family
    for family in (
        Metric(name="win_rate", title="win rate", better="higher"),
        Metric(
            name="lc_win_rate",
            title="LC win rate",
            label="length-controlled win rate",
            better="higher",
        ),
        Metric(name="tie_share", title="ties", label="share of ties"),
        Metric(name="benchmark", title="benchmark", better="higher"),
        Metric(
            name="repeat_difference",
            title="judged otherwise",
            label="share of verdicts that differ when repeated",
            better="lower",
        ),
    )
}


def metric_named(name: str) -> Metric:
    """Return the metric called `name`, on its own or of a family.

    Raises KeyError if there is none.
    """
    if name in METRICS:
        return METRICS[name]
    family, dot, about = name.partition(".")
    if not dot or not about or family not in FAMILIES:
        raise KeyError(name)
    metric = FAMILIES[family]
    place = about.replace(".", ", ")
    title = place if family == "benchmark" else f"{metric.title}: {place}"
    label = "" if not metric.label else f"{metric.label}: {place}"
    return replace(metric, name=name, title=title, label=label)


def shown_in(view: View) -> list[Metric]:
    """List the metrics that `view` shows without being asked.

    They are in the order of the table.
    """
    return [metric for metric in METRICS.values() if view in metric.shown_in]
