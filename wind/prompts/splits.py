"""Splits of a folder of data files, by the rule of the `datasets` library: the names of files and folders tell.

`train-00000-of-00003.parquet` belongs to the split train, and so do `train.jsonl`, `train_2.jsonl` and every file in a folder
`train`; `train_sft-00000-of-00001.parquet` belongs to train_sft, which is another. Where `datasets` would guess from a word in a
name, `train_sft.jsonl` is a split of that name.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SHARD: Final = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}$")
NUMBERED: Final = re.compile(r"[-._ ]?\d+$")
KEYWORDS: Final = {  # as `datasets` has them
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "dev", "val"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}


def split_of_file(path: Path) -> str | None:
    """The split that the data file `path`, relative to the source's folder, belongs to; None where its name tells of none."""
    for folder in path.parts[:-1]:
        if (word := NUMBERED.sub("", folder.lower())) in KEYWORDS:
            return KEYWORDS[word]
    if shard := SHARD.match(path.stem):
        return KEYWORDS.get(shard["split"].lower(), shard["split"])
    name = NUMBERED.sub("", path.stem)
    if name.lower() in KEYWORDS:
        return KEYWORDS[name.lower()]
    return name if re.split(r"[-._ ]", name.lower())[0] in KEYWORDS else None


def by_split(folder: Path, suffixes: Sequence[str]) -> dict[str | None, list[Path]]:
    """The data files at any depth below `folder`, in order, by the split they belong to; hidden ones are none."""
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix in suffixes and not any(part.startswith(".") for part in below.parts):
            found.setdefault(split_of_file(below), []).append(path)
    return found
