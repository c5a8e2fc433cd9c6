"""The columns of the dataset `rewards`, for every kind of reward."""

from typing import Final

import pyarrow as pa

from wind.store.schemas import (
    PROMPT,
    PROMPT_ID,
    SAMPLE,
    SAMPLE_INDEX,
    Column,
    Declaration,
    ForeignKey,
)

# Columns of a pairwise reward, beside which `reward` is the mean preference over the others.
PREFERENCES = (
    Column(
        "preferences",
        pa.list_(pa.field("item", pa.float64(), nullable=False)),
        "P(this response beats response j) in [0, 1], by the sample_index of the responses to the "
        "prompt, 1/2 at its own place; or by that of the opponents it was scored against",
    ),
    Column("cut_share", pa.float64(), "[0, 1], its comparisons that read a text cut to fit"),
)
# The column of a judge that compares: the share of a row's comparisons without a verdict, in [0, 1].
UNPARSED_SHARE: Final = "unparsed_share"

DATASET = Declaration(
    row="one response as the reward sees it",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column(
            "reward",
            pa.float64(),
            "higher is better; of a pairwise reward the mean preference over the others",
        ),
    ),
    optional_columns=PREFERENCES,
    has_components=True,
    key=SAMPLE,
    foreign_keys=(
        ForeignKey(SAMPLE, "generations", is_one_to_one=True),
        ForeignKey(PROMPT, "opponents"),
    ),
)
