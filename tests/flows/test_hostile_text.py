"""Text out of data, names and mistakes reaches the terminal harmlessly in every command, and as
itself in JSON.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

from flows import cli
from tests.wind.reading_case import PROMPTS, make_versions
from wind.machine.terminal import harmless
from wind.store.datasets import Store

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202egpj.exe\u2066\u200f\u200b[bold]\n\r\x85\u2028ü"


@pytest.fixture(params=["utf-8", "ascii"])
def encoding(request: pytest.FixtureRequest) -> str:
    """Of the terminal."""
    return str(request.param)


@pytest.fixture
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in the current folder, every text in it hostile."""
    monkeypatch.chdir(tmp_path)
    make_versions(Store(tmp_path / "store"), tmp_path / "outside", text=HOSTILE)


def wind(encoding: str, *arguments: str) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of a command, on a terminal that refuses
    what it does not know.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n") for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["wind", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    texts = []
    for stream in (out, err):
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        texts.append(stream.buffer.getvalue().decode(encoding))
    return int(ended.value.code or 0), texts[0], texts[1]


def is_harmless(text: str) -> bool:
    return "".join(text.split("\n")).isprintable()


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize(
    "arguments",
    [
        ["rows", "demo:prompts"],
        ["rows", "demo:generations"],
        ["prompt", PROMPTS[0]],
        ["sql", "SELECT *, prompt AS 'x\x1b[31m\ny' FROM prompts"],
    ],
    ids=lambda arguments: " ".join(arguments)[:24].encode("unicode_escape").decode(),
)
def test_data_is_shown_harmlessly(arguments: list[str], encoding: str) -> None:
    code, out, err = wind(encoding, *arguments)
    assert (code, err) == (0, "")
    assert r"\x1b]0;title\x07" in out or ";title" in out.replace("\n", "")
    assert is_harmless(out)


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize(
    "arguments",
    [
        ["versions"],
        ["versions", "--root", f"{HOSTILE}://x"],
        ["lineage", "demo"],
        ["lineage", PROMPTS[0]],
        ["lineage", PROMPTS[0], "--format", "mermaid"],
        ["show", "demo"],
        ["diff", "demo@1", "demo@2"],
        ["verify"],
        ["tags"],
        ["gc", "--dry-run"],
        ["export", "demo:rewards", f"x{HOSTILE}", "--format", "parquet"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_prints_harmlessly(arguments: list[str], encoding: str) -> None:
    _, out, err = wind(encoding, *arguments)
    assert out
    assert is_harmless(out + err)


@pytest.mark.usefixtures("_store")
@pytest.mark.parametrize(
    "arguments",
    [
        ["rows", f"demo:{HOSTILE}"],
        ["rows", "demo:prompts", "--where", f"'{HOSTILE}"],
        ["versions", HOSTILE],
        ["show", f"demo@{HOSTILE}"],
        ["tag", "demo", HOSTILE],
        ["sql", f"SELECT * FROM '{HOSTILE}'"],
        ["sql", f"SELECT error('{HOSTILE}') FROM prompts"],
        ["run", f"{HOSTILE}.yaml"],
        ["run", "hostile.yaml"],
        [f"--{HOSTILE}"],
        [HOSTILE],
        ["rows", "demo:prompts", "--limit", HOSTILE],
        ["import", HOSTILE],
    ],
    ids=lambda arguments: " ".join(arguments)[:24].encode("unicode_escape").decode(),
)
def test_a_mistake_is_one_harmless_line(arguments: list[str], encoding: str) -> None:
    Path("hostile.yaml").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    code, out, err = wind(encoding, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert is_harmless(err)


@pytest.mark.usefixtures("_store")
def test_json_has_the_text_itself(encoding: str) -> None:
    _, out, _ = wind(encoding, "rows", "demo:prompts", "--json")
    assert [row["answer"] for row in json.loads(out)] == [f"a{HOSTILE}", None, f"c{HOSTILE}"]
    _, queried, _ = wind(encoding, "sql", "SELECT answer FROM prompts", "demo@1", "--json")
    assert json.loads(queried) == [{"answer": row["answer"]} for row in json.loads(out)]
    _, shown, _ = wind(encoding, "prompt", PROMPTS[0], "--json")
    assert json.loads(shown)["prompt"] == f"say a{HOSTILE}"
    assert all(character == "\n" or " " <= character <= "~" for character in out + queried + shown)
    assert harmless(HOSTILE).isprintable()
