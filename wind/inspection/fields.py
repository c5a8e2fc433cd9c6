"""The table of fields: what can be searched, filtered, sorted and shown of a prompt.

Everything that reads prompts takes its fields from here: the index, queries, the page, the
terminal. Shares are in [0, 1], lengths in tokens. What an iteration does not have is missing: a
prompt that it did not sample has no reward.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Kind = Literal["text", "number", "yes"]
# `prompt`: columns of the prompts; `index`: computed from the datasets of a version; `beside`: what
# checks and readers say.
Source = Literal["prompt", "index", "beside"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a prompt and how it is shown."""

    name: str
    title: str
    kind: Kind
    source: Source
    meaning: str
    digits: int = 3  # after the decimal point
    # which direction deserves a look first, and so how a click on the column sorts
    first: Literal["highest", "lowest"] = "highest"
    choices: tuple[str, ...] = ()  # of a text that has no other values


FIELDS: Final = {
    field.name: field
    for field in (
        Field(
            name="text",
            title="prompt",
            kind="text",
            source="prompt",
            meaning="last message of the prompt",
            first="lowest",
        ),
        Field(
            name="prompt_id",
            title="id",
            kind="text",
            source="prompt",
            meaning="32 hex digits: hash of the rendered prompt",
            first="lowest",
        ),
        Field(
            name="split",
            title="split",
            kind="text",
            source="prompt",
            meaning="train, or eval for a held-out prompt",
            first="lowest",
            choices=("train", "eval"),
        ),
        Field(
            name="answer",
            title="gold answer",
            kind="text",
            source="prompt",
            meaning="gold answer, where one is known",
            first="lowest",
        ),
        Field(
            name="samples",
            title="samples",
            kind="number",
            source="index",
            meaning="number of responses in this iteration",
            digits=0,
        ),
        Field(
            name="reward_mean",
            title="mean reward",
            kind="number",
            source="index",
            meaning="mean reward of the responses",
        ),
        Field(
            name="reward_best",
            title="best reward",
            kind="number",
            source="index",
            meaning="highest reward among the responses",
        ),
        Field(
            name="reward_gain",
            title="gain",
            kind="number",
            source="index",
            meaning="mean reward minus that of the reference, or of the initial policy, that the "
            "evaluation compares with; held-out prompts only",
        ),
        Field(
            name="reward_change",
            title="change",
            kind="number",
            source="index",
            meaning="mean reward minus that of the iteration before",
        ),
        Field(
            name="win_rate",
            title="win rate",
            kind="number",
            source="index",
            meaning="held-out: mean win rate against the reference's or initial policy's "
            "responses; train: of the best response among its siblings",
            first="lowest",
        ),
        Field(
            name="disagreement",
            title="disagreement",
            kind="number",
            source="index",
            meaning="win rate under the training reward minus the lowest under any other judge or "
            "the gold answer; held-out prompts only",
        ),
        Field(
            name="rank_flips",
            title="rank flips",
            kind="number",
            source="index",
            meaning="share of pairs of samples whose order by reward is the opposite of that in "
            "the iteration before",
        ),
        Field(
            name="tokens_mean",
            title="mean length",
            kind="number",
            source="index",
            meaning="mean length of the responses in tokens",
            digits=1,
        ),
        Field(
            name="tokens_max",
            title="max length",
            kind="number",
            source="index",
            meaning="length of the longest response in tokens",
            digits=0,
        ),
        Field(
            name="tie_share",
            title="ties",
            kind="number",
            source="index",
            meaning="share of comparisons that are ties",
        ),
        Field(
            name="truncated",
            title="truncated",
            kind="number",
            source="index",
            meaning="share of responses that max_new_tokens ended",
        ),
        Field(
            name="distinct",
            title="distinct",
            kind="number",
            source="index",
            meaning="number of different texts among the responses",
            digits=0,
            first="lowest",
        ),
        Field(
            name="check_failures",
            title="check failures",
            kind="number",
            source="beside",
            meaning="number of expectations of data checks that name a row of this prompt",
            digits=0,
        ),
        Field(
            name="flag",
            title="flag",
            kind="yes",
            source="beside",
            meaning="whether a reader flagged the prompt",
        ),
        Field(
            name="note",
            title="note",
            kind="text",
            source="beside",
            meaning="what a reader wrote about the prompt",
            first="lowest",
        ),
    )
}


def table() -> list[dict[str, Any]]:
    """Return the fields as plain data, for pages."""
    return [asdict(field) for field in FIELDS.values()]


def of_source(source: Source) -> tuple[str, ...]:
    """Return the names of the fields that come from `source`."""
    return tuple(field.name for field in FIELDS.values() if field.source == source)
