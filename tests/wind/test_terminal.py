"""What reaches a terminal: one line for a line, nothing that a terminal obeys, nothing that its
encoding does not know.
"""

import ast
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from wind.machine.terminal import PlainConsole, complain, harmless, json_text, say, say_json

ROOT = Path(__file__).resolve().parents[2]
# Title and color, a C1 escape; a reversed name, isolates, marks of order; no width; line ends of
# all kinds; half a character.
HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b31m\x7f\u202egpj.exe\u2066\u2069\u200e\u200f\u061c\u200b\u2060\ufeff\U000e0041"
HOSTILE += "\n\r\t\x85\u2028\u2029\ud800"


def written(encoding: str = "utf-8") -> io.TextIOWrapper:
    """A stream that refuses what its encoding does not know."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")


def text_of(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(stream.encoding)


def test_what_a_terminal_would_obey_is_shown_as_python_escapes_it() -> None:
    assert harmless("\x1b[31mred\x1b[0m") == r"\x1b[31mred\x1b[0m"
    assert harmless("invoice\u202egpj.exe") == r"invoice\u202egpj.exe"
    assert harmless("two\nlines\r\n") == r"two\nlines\r\n"
    assert harmless("a\u200bb\ufeff\x85\u2028\ud800") == r"a\u200bb\ufeff\x85\u2028\ud800"
    assert harmless(HOSTILE).isprintable()


@pytest.mark.parametrize(
    "text", ["plain", "ü ñ 漢字 \u3000 שלום مرحبا 🙂 e\u0301", r"a\b", "[bold]no[/markup] :smile:"]
)
def test_what_is_read_stays(text: str) -> None:
    assert harmless(text) == text


def test_an_encoding_gets_what_it_knows() -> None:
    assert harmless("ü漢", "ascii") == r"\xfc\u6f22"
    assert harmless("ü漢", "latin-1") == r"ü\u6f22"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_every_way_to_the_terminal_is_harmless(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"[bold]{HOSTILE}漢[/bold]"
    out, err = written(encoding), written(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    table = Table(data, "b", title=data)
    table.add_row(data, "b")
    table.add_row(Text(data), Text.assemble((data, "bold red")))
    tree = Tree(data)
    tree.add(Text(data))
    PlainConsole(width=2000).print(table)
    PlainConsole(file=sys.stderr).print(tree, data, style="red")
    say(data, Path(data))
    complain(data)
    for stream in (out, err):
        text = text_of(stream)
        assert r"\x1b]0;title\x07\x1b[31m" in text
        assert "[bold]" in text
        assert "".join(text.split("\n")).isprintable()
    assert text_of(err).splitlines()[-1] == harmless(data, encoding)


def test_json_says_exactly_what_is_there_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    out = written("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    say_json({HOSTILE: [HOSTILE, 1.5, None]})
    assert json.loads(text_of(out)) == {HOSTILE: [HOSTILE, 1.5, None]}
    assert all(" " <= character <= "~" for character in json_text(HOSTILE))


def test_all_that_is_printed_goes_through_one_module() -> None:
    """No module prints, or makes a console, of its own, but to a pipe; what a launcher says goes to
    a log.
    """
    found = []
    for path in sorted(
        file
        for name in ("flows", "tasks", "data_checks", "wind")
        for file in (ROOT / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _prints(node.func) and not _goes_elsewhere(node):
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)[:60]}")
    assert [
        place
        for place in found
        if not place.startswith(
            (
                "wind/machine/terminal.py",
                "wind/machine/lifeline.py",
                "wind/stages/__main__.py: ArgumentParser(",
            )
        )
    ] == []
    assert found  # the module itself is found by what is looked for


def test_what_makes_html_is_known() -> None:
    """Templates that escape, and the pages of Great Expectations with every value escaped."""
    makers = ("Environment", "DefaultJinjaPageView", "ValidationResultsPageRenderer", "Markup")
    markup = re.compile(r"</?(html|td|div|p|svg|script)\b")
    found = set()
    for path in sorted(
        file
        for name in ("flows", "tasks", "data_checks", "wind")
        for file in (ROOT / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in makers:
                found.add(f"{path.relative_to(ROOT)}: {ast.unparse(node.func)}")
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and markup.search(node.value)
            ):
                found.add(f"{path.relative_to(ROOT)}: text")
    assert found == {
        "data_checks/docs.py: Environment",  # autoescape
        "flows/pages/__init__.py: Environment",  # autoescape
        "flows/pages/__init__.py: Markup",  # files of ours, and what that environment rendered
        "flows/pages/samples.py: Markup",  # JSON without < and &
        # drawings, in which every text is escaped
        "flows/pages/chart.py: Markup",
        "flows/pages/chart.py: text",
        "flows/pages/glance.py: Markup",
        "flows/pages/glance.py: text",
        "flows/pages/lineage.py: Markup",
        "flows/pages/lineage.py: text",
        "data_checks/validation.py: DefaultJinjaPageView",
        "data_checks/validation.py: ValidationResultsPageRenderer",
    }


def test_a_stage_by_hand_complains_harmlessly(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "wind.stages",
        "spec.json",
        "--\x1b[31m\u202e",
        "--device",
        "\x9b",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "error: " in ran.stderr
    assert "".join(ran.stderr.split("\n")).isprintable()


def test_warnings_and_logs_of_libraries_are_harmless() -> None:
    program = f"""
import logging, warnings
from wind.machine.terminal import guard
guard()
warnings.warn({HOSTILE[:-1]!r})
logging.getLogger("somebody").warning("it said %s", {HOSTILE[:-1]!r})
try:
    raise ValueError({HOSTILE[:-1]!r})
except ValueError:
    logging.getLogger("somebody").exception("failed")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert ran.stderr.count(r"\x1b]0;title\x07") >= 3
    assert "".join(ran.stderr.split("\n")).isprintable()


def _prints(function: ast.expr) -> bool:
    name = ast.unparse(function)
    last = name.rpartition(".")[2]
    streams = (
        "stdout.write",
        "stderr.write",
        "__stdout__.write",
        "__stderr__.write",
        "stdout.writelines",
        "stderr.writelines",
    )
    makers = (
        "Console",
        "StreamHandler",
        "ArgumentParser",
        "echo",
        "secho",
        "basicConfig",
        "pprint",
        "inspect",
    )
    return name in ("print", "rich.print", "os.write") or name.endswith(streams) or last in makers


def _goes_elsewhere(call: ast.Call) -> bool:
    """Whether a call of `print` names a file that is no stream of this process."""
    return any(
        keyword.arg == "file" and "sys." not in ast.unparse(keyword.value)
        for keyword in call.keywords
    )
