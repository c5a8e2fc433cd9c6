"""Checks of prompts: text, length, disjoint splits, and no row lost.

Splits are disjoint by group as well, no prompt begins with two BOS tokens, and every dropped row of
the source is counted.
"""

from functools import cache
from pathlib import Path
from typing import Any

import great_expectations.expectations as gxe
import polars as pl
from great_expectations.expectations.expectation import Expectation

from data_checks.base import Frame, Subject, unique
from wind.answers import canonical
from wind.config.checks import ChecksConfig
from wind.nesting import json_value


def rows(prompts: Subject) -> pl.DataFrame:
    """One row per prompt."""
    tokens, bos, found = pl.col("prompt_token_ids"), _bos(prompts), ["prompt", "prompt_token_ids"]
    content = pl.element().struct.field("content").str.strip_chars().str.len_chars()
    rows = prompts.rows("prompt_id", "messages", "split", "meta", *found)
    return rows.with_columns(group=_groups(rows, prompts)).select(
        "prompt_id",
        "split",
        # equal texts have equal numbers
        text=pl.col("prompt").rank("dense"),
        splits_of_group=pl.col("split").n_unique().over("group"),
        # prompts with equal token ids are the same prompt, even if their texts differ
        splits_of_prompt=pl.max_horizontal(pl.col("split").n_unique().over(same) for same in found),
        content_characters=pl.col("messages").list.eval(content).list.sum(),
        prompt_tokens=tokens.list.len(),
        leading_bos=sum(
            tokens.list.get(place, null_on_oob=True).eq_missing(pl.lit(bos, pl.Int32))
            for place in range(2)
        ),
    )


def rows_expectations(prompts: Subject, checks: ChecksConfig) -> list[Expectation]:
    limit = prompts.setting("max_prompt_tokens")
    # Another tokenizer named them: by its texts they differ, and by its tokens they are short.
    is_named = "named_by" in prompts.manifest.parents
    return [
        unique(["prompt_id"]),
        gxe.ExpectColumnValuesToMatchRegex(
            column="prompt_id", regex="^[0-9a-f]{32}$", description="prompt_id is 32 hex digits"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="split", value_set=["train", "eval"], description="split is train or eval"
        ),
        *[
            gxe.ExpectColumnValuesToBeInSet(
                column="splits_of_prompt", value_set=[1], description="train and eval are disjoint"
            )
        ]
        * (not is_named),
        gxe.ExpectColumnValuesToBeInSet(
            column="splits_of_group", value_set=[1], description="a group is in one split"
        ),
        *[
            gxe.ExpectCompoundColumnsToBeUnique(
                column_list=["split", "text"], description="no prompt is twice in a split"
            )
        ]
        * (not is_named),
        gxe.ExpectColumnValuesToBeBetween(
            column="content_characters", min_value=1, description="no prompt is empty"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="prompt_tokens",
            min_value=1,
            max_value=None if is_named else limit,
            description="no prompt is longer than max_prompt_tokens",
        ),
    ] + [
        gxe.ExpectColumnValuesToBeBetween(
            column="leading_bos", max_value=1, description="no prompt begins with two BOS"
        )
    ] * (_bos(prompts) is not None)


def totals(prompts: Subject) -> pl.DataFrame:
    """One row: the number of source rows, and where they went."""
    dropped = prompts.manifest.outputs.get("dropped")
    dropped_rows = prompts.store.manifest(dropped).rows if dropped else 0
    return prompts.rows("split").select(
        source_rows=pl.lit(prompts.manifest.numbers.get("source_rows")),
        accounted_rows=pl.len() + dropped_rows,
        train_rows=(pl.col("split") == "train").sum(),
        eval_rows=(pl.col("split") == "eval").sum(),
    )


def totals_expectations(prompts: Subject, checks: ChecksConfig) -> list[Expectation]:
    return [
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="source_rows",
            column_B="accounted_rows",
            ignore_row_if="neither",
            description="rows of the source = prompts + dropped rows",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="train_rows", min_value=1, description="the train split has prompts"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="eval_rows", min_value=1, description="the eval split has prompts"
        ),
    ]


SUITE = (
    Frame("rows", ("prompt_id",), rows, rows_expectations),
    Frame("totals", (), totals, totals_expectations),
)


def _groups(rows: pl.DataFrame, prompts: Subject) -> pl.Series:
    """Return the group of each of `rows`.

    It is the value of the group field, or the prompt itself if there is no such field.
    """
    # prompts of older releases have no such setting
    field = prompts.manifest.computed_by.get("spec", {}).get("group_field")
    if field is None:
        return rows["prompt_id"]
    return pl.Series(
        [canonical(json_value(meta.encode())[field]) for meta in rows["meta"]], dtype=pl.String
    )


def _bos(prompts: Subject) -> int | None:
    """Return the BOS token that no prompt may begin with twice.

    None if the tokenizer has none. None as well if the BOS token also ends the turns of a chat
    template: the second one may then be the end of an empty turn.
    """
    folder = prompts.store.path(prompts.input("tokenizer"))
    bos = token_id(folder, "bos_token")
    return (
        None
        if bos == token_id(folder, "eos_token") and prompts.setting("template") != "none"
        else bos
    )


@cache
def token_id(folder: Path, name: str) -> int | None:
    """Return the id of the tokenizer's special token `name`.

    None if it has none. `folder` is the folder of the tokenizer's files.
    """
    named = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    token = named.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    tokenizer = _json(folder / "tokenizer.json")
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    # Unigram: pairs of piece and score, in the order of their ids
    if isinstance(vocabulary, list):
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    found = added.get(text, vocabulary.get(text, _json(folder / "config.json").get(f"{name}_id")))
    return None if found is None else int(found)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json_value(path.read_bytes()) if path.is_file() else {}
    return content
