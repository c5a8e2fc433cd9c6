"""A name is all that a pattern says, and nothing after it: Python's `$` also matches before a line
end.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from wind.config.base import Function, Name
from wind.prompts.sources import COMMIT, HUB_ID
from wind.store.handles import FINGERPRINT, Dataset, StoredFile
from wind.store.layout import MODEL_FILES
from wind.store.tags import TAG
from wind.store.versions import NUMBERED, USED_NUMBER

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    path
    for part in ("wind", "tasks", "flows", "data_checks")
    for path in (ROOT / part).rglob("*.py")
]


def compiled() -> Iterator[tuple[str, str]]:
    """The names that compiled patterns are bound to, and the patterns."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(
                node.value, ast.Call
            ):
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(node.value.func) == "re.compile":
                yield ast.unparse(target), ast.unparse(node.value.args[0])


def test_no_pattern_with_an_end_is_matched_before_it() -> None:
    ended = {name for name, pattern in compiled() if re.fullmatch(r"r?['\"]\^.*\$['\"]", pattern)}
    assert {"FINGERPRINT", "REFERENCE"} <= ended
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("match", "search")
                and ast.unparse(node.value) in ended
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (FINGERPRINT, "0" * 64),
        (MODEL_FILES, "vocab.txt"),
        (MODEL_FILES, "model-00001-of-00002.safetensors"),
        (COMMIT, "0" * 40),
        (HUB_ID, "some/thing"),
        (NUMBERED, "0001.json"),
        (USED_NUMBER, "0001.forgotten"),
        (TAG, "best"),
    ],
)
def test_a_line_end_belongs_to_no_name(pattern: re.Pattern[str], name: str) -> None:
    assert pattern.fullmatch(name)
    assert not pattern.fullmatch(f"{name}\n")
    if pattern is MODEL_FILES:  # which archives only match
        assert not pattern.match(f"{name}\n")


@pytest.mark.parametrize("ending", ["\n", "\r", "\x00", "\x1b[31m", "\x7f"])
def test_nor_do_control_characters(ending: str) -> None:
    for kind, value in ((Name, "demo"), (Function, "module:function")):
        adapter: TypeAdapter[str] = TypeAdapter(kind)
        assert adapter.validate_python(value) == value
        with pytest.raises(ValidationError):
            adapter.validate_python(value + ending)
    assert StoredFile(name="p.jsonl", bytes=0, sha256="0" * 64).name == "p.jsonl"
    for wrong in (f"p.jsonl{ending}", f"{ending}p.jsonl", f".{ending}"):
        with pytest.raises(ValidationError):
            StoredFile(name=wrong, bytes=0, sha256="0" * 64)
    with pytest.raises(ValidationError):
        Dataset(name=f"rewards{ending}", fingerprint="0" * 64, rows=0)
