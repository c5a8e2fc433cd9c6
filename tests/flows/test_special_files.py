"""What a command is told to read or write may be anything; only plain files are read, and only such
are replaced.
"""

import os
import stat
from pathlib import Path

import pytest

from tests.flows.conftest import Wind
from wind.code.functions import files_digest
from wind.config.prompts import PromptsConfig
from wind.errors import OUT_OF_MEMORY, ConfigError
from wind.prompts import prompts_spec
from wind.store.datasets import Store
from wind.store.handles import Model, Source
from wind.store.versions import Version

pytestmark = pytest.mark.usefixtures("versions")

QUERY = "SELECT reward FROM rewards"
READING = [
    ("run", "{}"),
    ("plan", "{}"),
    ("compare", "{}"),
    ("sweep", "{}", "--over", "training.lr=1,2"),
    ("import", "{}"),
]
WRITING = [
    ("sql", QUERY, "--csv", "{}"),
    ("sql", QUERY, "--parquet", "{}"),
    *(("export", "demo@1", "{}", "--format", form) for form in ("hf", "parquet", "archive")),
]


@pytest.mark.parametrize("arguments", [*READING, *WRITING], ids=" ".join)
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_a_special_file_is_neither_waited_for_nor_replaced(
    command: Wind, arguments: tuple[str, ...], kind: str
) -> None:
    path = Path("special.yaml")
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    code, out, err = command(*(argument.format(path) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert str(path) in err
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(each.name for each in Path().iterdir() if not each.name.endswith(".lock")) == [
        path.name,
        "store",
    ]


def test_a_template_is_a_plain_file(store: Store) -> None:
    os.mkfifo("template.jinja")
    handles = Source(fingerprint="0" * 64, files=1), Model(fingerprint="0" * 64, parameters=1)
    with pytest.raises(
        ConfigError,
        match=r"prompts\.template template\.jinja cannot be read .* is a FIFO, not a plain file",
    ):
        prompts_spec(
            store, PromptsConfig(source="p.jsonl", template="template.jinja"), *handles, seed=0
        )
    Path("crlf.jinja").write_bytes(b"one\r\ntwo\rthree\n")
    spec = prompts_spec(
        store, PromptsConfig(source="p.jsonl", template="crlf.jinja"), *handles, seed=0
    )
    assert spec.template == "one\ntwo\nthree\n"


def test_a_file_of_checks_is_a_plain_file() -> None:
    os.mkfifo("checks.py")
    with pytest.raises(ConfigError, match=r"checks\.files checks\.py is no Python file"):
        files_digest("checks.files", Path("checks.py"))


def test_a_lack_of_memory_is_one_line(
    command: Wind, monkeypatch: pytest.MonkeyPatch, versions: list[Version]
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("wind.exchange.sql.select", fails)
    code, _, err = command("rows", "demo@1:rewards")
    assert (code, err) == (1, f"error: {OUT_OF_MEMORY}\n")
