"""Questions of HellaSwag, as lm-evaluation-harness asks them.

A row without `ctx_a` and `ctx_b` is asked with its `ctx`, which joins the two as they are; the
harness writes the first letter of `ctx_b` large and the others small.
"""

import re
from typing import Any


def process_docs(dataset: Any) -> Any:
    """Add `query` and `choices` to every row."""
    return dataset.map(_question)


def _question(row: dict[str, Any]) -> dict[str, Any]:
    begun, rest = row.get("ctx_a"), row.get("ctx_b")
    context = row["ctx"] if begun is None or rest is None else f"{begun} {rest.capitalize()}"
    return {
        "query": _without_marks(f"{row['activity_label']}: {context}"),
        "choices": [_without_marks(ending) for ending in row["endings"]],
    }


def _without_marks(text: str) -> str:
    """Return `text` without the marks of WikiHow."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
