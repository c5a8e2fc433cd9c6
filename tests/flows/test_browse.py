"""Reading samples in a terminal: every key in textual's own pilot, and once in a real terminal."""

import asyncio
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, OptionList, Static, TextArea

from flows.browse.app import Browser
from flows.pages.samples import open_reader
from tests.wind.reading_case import make_versions
from wind.inspection.notes import Notes
from wind.store.datasets import Store
from wind.store.references import find_version

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]x[/]\u202egnp\r\nnext\tline \U0001f600"
A, B, C = ("a" * 32, "b" * 32, "c" * 32)

Script = Callable[[Browser, "Pilot[None]"], Awaitable[None]]


def browse(
    folder: Path, script: Script, *, text: str = "", size: tuple[int, int] = (80, 24)
) -> None:
    """Run `script` on a browser of the last version of the small store, in a terminal of `size`."""
    store = Store(folder / "store")
    make_versions(store, folder / "outside", text=text)
    app = Browser(open_reader(store), find_version(store, "demo"))

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(app, pilot)

    asyncio.run(run())


def state(app: Browser) -> str:
    """The line above."""
    return str(app.query_one("#state", Static).content)


def detail(app: Browser) -> str:
    """Everything below the list, scrolled or not."""
    return "\n".join(str(each.content) for each in app.query("#detail Static").results(Static))


def listed(app: Browser) -> list[list[str]]:
    """The rows of the list."""
    table = app.query_one("#list", DataTable)
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def screen(app: App[None]) -> list[str]:
    """What the terminal shows, row by row."""
    return [
        "".join(part.text for part in strip) for strip in app.screen._compositor.render_strips()
    ]


def test_prompts_and_the_responses_to_one(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        assert [row[1] for row in listed(app)] == ["say a", "say b", "say c"]
        assert state(app).startswith("demo@2  iteration 2  prompt 1 of 3")
        assert "user: say a" in detail(app)
        assert "gold answer: a" in detail(app)
        assert "> sample 0: reward 2.000, win rate 0.000, rank 2, 2 tokens\na20" in detail(app)
        assert "  sample 1: reward 4.000, win rate 1.000, rank 1, 3 tokens\na21" in detail(app)
        rows = screen(app)
        assert len(rows) == 24
        assert "a20" in "".join(rows)
        assert rows[-1].strip().startswith("j/k")
        await pilot.press("n")
        assert "> sample 1: reward 4.000" in detail(app)
        await pilot.press("n")
        assert "> sample 0" in detail(app)
        await pilot.press("N", "j", "j")
        assert state(app).startswith("demo@2  iteration 2  prompt 3 of 3")
        assert "user: say c" in detail(app)
        await pilot.press("j")
        assert "prompt 3 of 3" in state(app)
        await pilot.press("k", "down", "down", "up")
        await pilot.pause()
        assert "user: say b" in detail(app)

    browse(tmp_path, script)


def test_another_iteration_and_what_changed(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        await pilot.press("j", "n", "d")
        assert "since iteration 1: [-removed-] {+added+}\n[-b11-]{+b21+}" in detail(app)
        assert "b20" in detail(app)
        await pilot.press("d", "I")
        assert state(app).startswith("demo@1  iteration 1  prompt 2 of 3")
        assert "> sample 1: reward 0.000, win rate 0.000, rank 2, 3 tokens\nb11" in detail(app)
        await pilot.press("I")
        assert state(app) == "there is no iteration before this one"
        await pilot.press("d")
        assert state(app) == "there is no earlier iteration with this sample"
        await pilot.press("i")
        assert state(app).startswith("demo@2  iteration 2  prompt 2 of 3")
        await pilot.press("t")
        assert state(app).endswith(" has no tokenizer.json to show tokens with")

    browse(tmp_path, script)


def test_search_filter_and_sort(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        await pilot.press("slash", *"SAY B", "enter")
        assert [row[1] for row in listed(app)] == ["say b"]
        assert "search SAY B" in state(app)
        await pilot.press("escape")
        assert len(listed(app)) == 3
        line = app.query_one("#line", Input)
        await pilot.press("f", *"reward_mean > > 3", "enter")
        # what is wrong is said, and the line is still there to be mended
        assert app.query_one("#state").has_class("wrong")
        assert line.display
        line.value = "reward_mean > 3"
        await pilot.press("enter")
        assert [row[1] for row in listed(app)] == ["say b"]
        assert "filter reward_mean > 3" in state(app)
        await pilot.press("f")
        assert line.value == "reward_mean > 3"
        await pilot.press("escape", "escape")
        assert not line.display
        assert len(listed(app)) == 3
        await pilot.press("s")
        options = app.screen.query_one(OptionList)
        options.highlighted = options.get_option_index("reward_mean")
        await pilot.press("enter")
        assert "sort -reward_mean" in state(app)
        assert [row[1] for row in listed(app)] == ["say b", "say a", "say c"]
        await pilot.press("s", "enter")
        assert "sort reward_mean" in state(app)
        assert [row[1] for row in listed(app)] == ["say a", "say b", "say c"]

    browse(tmp_path, script)


def test_nothing_found_is_said(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        await pilot.press("slash", *"nowhere", "enter")
        assert listed(app) == []
        assert detail(app) == "no prompt is like that"
        # nothing to do, and nothing breaks
        await pilot.press("j", "k", "n", "d", "d", "t", "t", "m", "e", "space", "b", "I", "i")
        assert "prompt 0 of 0" in state(app)
        await pilot.press("escape")
        assert len(listed(app)) == 3

    browse(tmp_path, script)


def test_flags_and_notes_are_kept_beside_the_run(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        notes = Notes(Store(tmp_path / "store"), "demo")
        await pilot.press("j", "m")
        assert notes.all()[B].flag
        assert listed(app)[1][0] == "!"
        assert "! flagged" in detail(app)
        await pilot.press("e", *"why so", "enter", *"short", "ctrl+s")
        assert notes.all()[B].note == "why so\nshort"
        assert notes.all()[B].version == "demo@2"
        assert "note: why so\nshort" in detail(app)
        assert listed(app)[1][0] == "!n"
        await pilot.press("e", "x", "escape")
        assert notes.all()[B].note == "why so\nshort"
        await pilot.press("e")
        app.screen.query_one(TextArea).text = ""
        await pilot.press("ctrl+s", "m")
        assert notes.all() == {}
        # of the next prompt, nothing is known
        await pilot.press("j", "m")
        assert list(notes.all()) == [C]

    browse(tmp_path, script)


def test_hostile_texts_are_harmless(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        shown = detail(app)
        assert r"\x1b]0;owned\x07\x1b[2J[bold red]x[/]\u202egnp\r" + "\nnext" in shown
        assert "[bold red]" in listed(app)[0][1]
        await pilot.press("j", "d", "d", "slash", *"[bold", "enter", "e")
        for row in screen(app):
            assert row.isprintable(), row

    browse(tmp_path, script, text=HOSTILE)


def test_long_texts_are_cut_and_said_to_be(tmp_path: Path) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        assert "more characters: `wind prompt --json` has them]" in detail(app)
        assert len(detail(app)) < 100_000
        await pilot.press("n", "space", "space", "b", "j")
        assert "prompt 2 of 3" in state(app)

    browse(tmp_path, script, text="x" * 1_000_000)


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (200, 50)])
def test_everything_fits_into_any_terminal(tmp_path: Path, size: tuple[int, int]) -> None:
    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        assert app.query_one("#both").has_class("wide") == (size[0] >= 140)
        table = app.query_one("#list", DataTable)
        assert table.virtual_size.width <= size[0]
        await pilot.press("l", "question_mark")
        assert "quit" in "".join(screen(app)) or size[1] < 20
        await pilot.press("x", "s", "j", "k", "escape")
        assert "prompt 1 of 3" in state(app)
        assert all(len(row) <= size[0] for row in screen(app))

    browse(tmp_path, script, size=size)


def test_a_page_is_turned_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.browse.app.SIZE", 2)

    async def script(app: Browser, pilot: "Pilot[None]") -> None:
        assert [row[1] for row in listed(app)] == ["say a", "say b"]
        await pilot.press("j", "j")
        assert [row[1] for row in listed(app)] == ["say c"]
        assert "prompt 3 of 3" in state(app)
        await pilot.press("k")
        assert "prompt 2 of 3" in state(app)
        assert "user: say b" in detail(app)

    browse(tmp_path, script)


# ------------------------------------------------------------------------------- a real terminal


def in_terminal(folder: Path, *arguments: str, keys: list[bytes]) -> tuple[int, bytes]:
    """The exit code and output of `wind` in a pseudo-terminal of 80 by 24, given keys one by one."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "flows.cli", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment
    )
    output, waiting, deadline = b"", list(keys), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([master], [], [], 1.5)[0]:
            output += os.read(master, 1 << 16)
        elif waiting and b"say a" in output:
            # it has said all that it has to say to the last key
            os.write(master, waiting.pop(0))
    process.kill() if process.poll() is None else None
    while select.select([master], [], [], 0.2)[0]:
        output += os.read(master, 1 << 16)
    assert termios.tcgetattr(slave) == before, "the terminal is as it was"
    os.close(master)
    os.close(slave)
    return process.wait(), output


@pytest.mark.slow
def test_in_a_real_terminal(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_versions(store, tmp_path / "outside", text=HOSTILE)
    code, output = in_terminal(tmp_path, "browse", "demo", keys=[b"j", b"m", b"q"])
    assert code == 0
    # the texts of the program itself are not owned by what it shows
    assert b"]0;owned" in output
    assert b"\x1b]0;owned" not in output
    assert "\u202e".encode() not in output
    assert b"prompt 2 of 3" in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", output)
    assert Notes(store, "demo").all()[B].flag
    # the screen of before is back
    assert b"\x1b[?1049l" in output


def test_without_a_terminal(tmp_path: Path) -> None:
    make_versions(Store(tmp_path / "store"), tmp_path / "outside")
    made = subprocess.run(
        [sys.executable, "-m", "flows.cli", "browse", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert made.returncode == 2
    assert made.stderr.startswith("error: wind browse needs a terminal")
