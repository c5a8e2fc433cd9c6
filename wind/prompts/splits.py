"""Splits of a folder of data files, named as in `datasets`.

The names of files and folders decide. `train-00000-of-00003.parquet` belongs to the split train,
and so do `train.jsonl`, `train_2.jsonl` and every file in a folder `train`;
`train_sft-00000-of-00001.parquet` belongs to train_sft, a different split. Where `datasets` would
guess from a word in a name, that name is a split of its own: `train_sft.jsonl`, `gsm8k_test.jsonl`,
and every file in a folder `my-train`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# older names continue with a fingerprint
SHARD: Final = re.compile(r"(?P<split>.+?)-\d+-of-\d+")
NUMBERED: Final = re.compile(r"[-._ ]?\d+$")
BETWEEN_WORDS: Final = re.compile(r"[-._ \d]+")
# the same as in `datasets`
KEYWORDS: Final = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "dev", "val"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}


def split_of_file(path: Path) -> str | None:
    """Return the split that a data file's name implies, or None.

    `path` is relative to the source's folder.
    """
    for folder in path.parts[:-1]:
        if split := _told_by(folder):
            return split
    shard = SHARD.match(path.stem)
    return _canonical(shard["split"]) if shard else _told_by(path.stem)


def _told_by(name: str) -> str | None:
    """Return the split that `name` implies, ignoring its number.

    One of its words must be that of a split; otherwise None.
    """
    name = NUMBERED.sub("", name)
    return (
        _canonical(name)
        if any(word in KEYWORDS for word in BETWEEN_WORDS.split(name.lower()))
        else None
    )


def _canonical(name: str) -> str:
    return KEYWORDS.get(name.lower(), name)


def by_split(folder: Path, suffixes: Sequence[str]) -> dict[str | None, list[Path]]:
    """Group the data files below `folder` by split, in order.

    Looks at any depth, and skips hidden files.
    """
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix in suffixes and not any(part.startswith(".") for part in below.parts):
            found.setdefault(split_of_file(below), []).append(path)
    return found
