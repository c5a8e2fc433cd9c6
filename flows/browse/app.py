"""The screen of `wind browse`: prompts above, the responses to one of them below.

Everything that a key does is an action here; what is shown is written by `flows.browse.texts`. An
error of the store or of a query is a line of the screen, and never ends the program.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Input, Static

from flows.browse import texts
from flows.browse.screens import Fields, Help, Writing
from wind.errors import ConfigError, WindError
from wind.inspection.detail import Detail
from wind.inspection.fields import FIELDS
from wind.inspection.notes import Note
from wind.inspection.query import Query
from wind.inspection.reader import Reader
from wind.inspection.tokens import Stretch
from wind.machine.terminal import harmless
from wind.store.versions import Version

# Prompts in the list at a time; `j` on the last one turns the page.
SIZE: Final = 100
# From this width on, responses stand beside the list.
WIDE: Final = 140
HINT: Final = "j/k n/N i/I  / search  f filter  s sort  d diff  t tokens  m e  ? keys  q quit"


class Browser(App[None]):
    """Reads the prompts of one version, and of the versions that it continues."""

    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "browse.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "move(1)"),
        Binding("k", "move(-1)"),
        Binding("n", "sample(1)"),
        Binding("N", "sample(-1)"),
        Binding("i", "iteration(1)"),
        Binding("I", "iteration(-1)"),
        Binding("space", "scroll(1)"),
        Binding("b", "scroll(-1)"),
        Binding("slash", "ask('text')"),
        Binding("f", "ask('where')"),
        Binding("s", "sort"),
        Binding("d", "toggle('difference')"),
        Binding("t", "toggle('tokens')"),
        Binding("m", "flag"),
        Binding("e", "note"),
        Binding("l", "light"),
        Binding("question_mark", "help"),
        Binding("escape", "clear"),
        Binding("q", "quit"),
    ]

    def __init__(self, reader: Reader, version: Version, *, is_light: bool = False) -> None:
        super().__init__()
        self._reader = reader
        self._versions = reader.chain(version)
        self._place = len(self._versions) - 1
        self._query = Query(size=SIZE)
        self._total = 0
        self._rows: list[dict[str, Any]] = []
        self._sample = 0
        self._shown: Detail | None = None
        self._mode: str | None = None
        self._asked: str | None = None
        self.theme = "textual-light" if is_light else "textual-dark"

    @property
    def version(self) -> Version:
        """The version whose prompts are shown."""
        return self._versions[self._place]

    def compose(self) -> ComposeResult:
        """Lay out the line above, the list, the responses, and the line below."""
        yield Static(id="state", markup=False)
        with Vertical(id="both"):
            yield DataTable(id="list", cursor_type="row", zebra_stripes=False)
            yield VerticalScroll(id="detail", can_focus=False)
        yield Input(id="line", compact=True)
        yield Static(HINT, id="hint", markup=False)

    async def on_mount(self) -> None:
        """Show the first page of prompts."""
        self.query_one("#line").display = False
        self.query_one("#list").focus()
        self._lay_out()
        await self._read_page()

    async def on_resize(self) -> None:
        """Choose the columns that fit."""
        if self.query("#list"):
            self._lay_out()
            self._fill(self._cursor())

    # ------------------------------------------------------------------------------- keys

    async def action_move(self, by: int) -> None:
        """Go to another prompt, on the next or previous page at either end."""
        place = self._cursor() + by
        if 0 <= place < len(self._rows):
            await self._select(place)
            return
        page = self._query.page + by
        if 1 <= page <= self._pages():
            self._query = replace(self._query, page=page)
            await self._read_page(place=0 if by > 0 else SIZE - 1)

    async def action_sample(self, by: int) -> None:
        """Select another sample of the prompt."""
        if self._shown is not None and self._shown.responses:
            self._sample = (self._sample + by) % len(self._shown.responses)
            await self._show()

    async def action_iteration(self, by: int) -> None:
        """Go to another iteration, to the same prompt there."""
        place = self._place + by
        if not 0 <= place < len(self._versions):
            self._say(f"there is no iteration {'after' if by > 0 else 'before'} this one")
            return
        before, self._place = self._place, place
        if not await self._read_page(place=self._cursor(), keep=self._prompt_id()):
            self._place = before

    def action_scroll(self, by: int) -> None:
        """Scroll the responses by a page."""
        detail = self.query_one("#detail", VerticalScroll)
        detail.scroll_relative(y=by * max(1, detail.size.height - 2), animate=False)

    async def action_toggle(self, mode: str) -> None:
        """Show differences or special tokens, or responses as they are again."""
        self._mode = None if self._mode == mode else mode
        if not await self._show():
            self._mode = None

    def action_ask(self, name: str) -> None:
        """Ask for a text to search for, or for a filter."""
        self._asked = name
        line = self.query_one("#line", Input)
        line.placeholder = {"text": "search", "where": "filter"}[name]
        line.value = getattr(self._query, name)
        line.display = True
        line.focus()

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Ask for the prompts; a query that is none stays, with what is wrong."""
        assert self._asked is not None
        before = self._query
        asked: dict[str, Any] = {self._asked: event.value}
        self._query = replace(before, page=1, **asked)
        if await self._read_page():
            self._close_line()
        else:
            self._query = before

    async def action_sort(self) -> None:
        """Choose a field to sort by."""

        async def sort(name: str | None) -> None:
            if name is None:
                return
            default = "-" if FIELDS[name].first == "highest" else ""
            order = default + name
            if self._query.sort == order:
                order = name if default else f"-{name}"
            self._query = replace(self._query, sort=order, page=1)
            await self._read_page()

        await self.push_screen(Fields(self._query.sort.removeprefix("-")), sort)

    async def action_flag(self) -> None:
        """Flag the prompt, or take its flag away."""
        await self._write(lambda note: note.model_copy(update={"flag": not note.flag}))

    async def action_note(self) -> None:
        """Write a note on the prompt."""

        async def write(text: str | None) -> None:
            if text is not None:
                await self._write(lambda note: note.model_copy(update={"note": text}))

        if self._shown is not None:
            note = self._note()
            await self.push_screen(Writing("" if note is None else note.note), write)

    def action_light(self) -> None:
        """Change between light and dark."""
        self.theme = "textual-dark" if self.theme == "textual-light" else "textual-light"

    async def action_help(self) -> None:
        """Show what the keys do."""
        await self.push_screen(Help())

    async def action_clear(self) -> None:
        """Leave the line, or drop search and filter."""
        if self.query_one("#line").display:
            self._close_line()
        elif self._query.text or self._query.where:
            self._query = replace(self._query, text="", where="", page=1)
            await self._read_page(keep=self._prompt_id())

    async def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the prompt under the cursor, wherever a click or key has put it."""
        if 0 <= event.cursor_row < len(self._rows) and (
            self._shown is None
            or self._shown.prompt_id != self._rows[event.cursor_row]["prompt_id"]
        ):
            self._sample = 0
            await self._show()

    # ------------------------------------------------------------------------------- reading

    async def _read_page(self, place: int = 0, keep: str | None = None) -> bool:
        """Read the prompts that are asked for; return whether that worked.

        The cursor is on the prompt `keep`, if it is among them, or else at `place`.
        """
        try:
            page = self._reader.answer(self.version, self._query)
        except WindError as error:
            self._say(str(error))
            return False
        self._total, self._rows = page.total, texts.rows_of(page.rows)
        ids = [row["prompt_id"] for row in self._rows]
        place = ids.index(keep) if keep in ids else min(place, max(0, len(ids) - 1))
        self._shown = None
        self._fill(place)
        if not keep:
            self._sample = 0
        return await self._show()

    async def _select(self, place: int) -> None:
        self._sample = 0
        self.query_one("#list", DataTable).move_cursor(row=place)
        await self._show()

    def _fill(self, place: int) -> None:
        """Write the list of prompts anew, with the cursor at `place`."""
        table: DataTable[Text] = self.query_one("#list", DataTable)
        widths = texts.columns(table.size.width or self.size.width, self._query.sort)
        with self.prevent(DataTable.RowHighlighted):
            table.clear(columns=True)
            table.add_column(Text(""), width=3)
            for name, width in widths.items():
                table.add_column(texts.header(name, self._query.sort), width=width, key=name)
            for row in self._rows:
                table.add_row(texts.mark(row), *(texts.cell(row, name) for name in widths))
            table.move_cursor(row=place, animate=False)

    async def _show(self) -> bool:
        """Show the prompt under the cursor; return whether it could be read."""
        detail = self.query_one("#detail", VerticalScroll)
        prompt_id = self._prompt_id()
        if prompt_id is None:
            self._shown = None
            await detail.remove_children()
            await detail.mount(Static("no prompt is like that", markup=False))
            self._tell()
            return True
        try:
            self._shown = found = self._reader.detail(self.version, prompt_id)
            self._sample = min(self._sample, max(0, len(found.responses) - 1))
            asked, bodies = self._bodies(found)
            note = self._note()
        except WindError as error:
            self._say(str(error))
            return False
        parts = [
            texts.sample(response, body, is_selected=place == self._sample)
            for place, (response, body) in enumerate(zip(found.responses, bodies, strict=True))
        ]
        above = Static(texts.head(found, note, asked), markup=False)
        samples = [
            Static(text, markup=False, classes="selected" * (place == self._sample))
            for place, text in enumerate(parts)
        ]
        with self.batch_update():
            await detail.remove_children()
            await detail.mount(above, *samples)
        if samples and self._sample:
            self.call_after_refresh(detail.scroll_to_widget, samples[self._sample], animate=False)
        else:
            detail.scroll_home(animate=False)
        self._tell()
        return True

    def _bodies(self, found: Detail) -> tuple[list[Stretch] | None, list[Text]]:
        """Return the prompt with its special tokens, and the responses, as they are to be shown."""
        if self._mode == "tokens":
            asked, spelled = self._reader.with_special_tokens(self.version, found.prompt_id)
            return asked, [texts.spelled(stretches) for stretches in spelled]
        bodies = [texts.plain(response.response) for response in found.responses]
        if self._mode == "difference" and found.responses:
            sample = found.responses[self._sample].sample_index
            steps = self._reader.over_iterations(self.version, found.prompt_id, sample)
            before = [step.iteration for step in steps[:-1] if step.response is not None]
            if not before:
                raise ConfigError("there is no earlier iteration with this sample")
            bodies[self._sample] = texts.difference(steps[-1].difference, before[-1])
        return None, bodies

    async def _write(self, change: Callable[[Note], Note]) -> None:
        if self._shown is None:
            return
        prompt_id = self._shown.prompt_id
        name = f"{self.version.run}@{self.version.number}"
        try:
            note = self._note() or Note(prompt_id=prompt_id)
            written = change(note.model_copy(update={"version": name}))
            self._reader.notes(self.version.run).write(written)
        except (WindError, OSError, ValueError) as error:
            self._say(f"it could not be written: {error}")
            return
        await self._read_page(place=self._cursor(), keep=prompt_id)

    def _note(self) -> Note | None:
        """Return the note on the prompt that is shown."""
        assert self._shown is not None
        return self._reader.notes(self.version.run).all().get(self._shown.prompt_id)

    # ------------------------------------------------------------------------------- what is where

    def _cursor(self) -> int:
        return self.query_one("#list", DataTable).cursor_row

    def _prompt_id(self) -> str | None:
        place = self._cursor()
        return self._rows[place]["prompt_id"] if place < len(self._rows) else None

    def _pages(self) -> int:
        return -(-self._total // SIZE)

    def _lay_out(self) -> None:
        self.query_one("#both").set_class(self.size.width >= WIDE, "wide")

    def _close_line(self) -> None:
        self.query_one("#line").display = False
        self.query_one("#list").focus()

    def _tell(self) -> None:
        """Write the line above: which version, which of its prompts, and in what order."""
        query, version = self._query, self.version
        place = (query.page - 1) * SIZE + self._cursor() + 1 if self._rows else 0
        said = [
            f"{version.run}@{version.number}",
            f"iteration {version.content.iteration}",
            f"prompt {place:,} of {self._total:,}",
        ]
        said += [f"sort {query.sort}"] * bool(query.sort)
        said += [f"search {query.text}"] * bool(query.text)
        said += [f"filter {query.where}"] * bool(query.where)
        said += [
            {"tokens": "special tokens", "difference": "differences"}.get(self._mode or "", "")
        ]
        self._line_above("  ".join(filter(None, said)))

    def _say(self, line: str) -> None:
        """Write what went wrong in the line above, until the next key that does something."""
        self._line_above(line, is_wrong=True)

    def _line_above(self, line: str, *, is_wrong: bool = False) -> None:
        state = self.query_one("#state", Static)
        state.set_class(is_wrong, "wrong")
        state.update(Text(harmless(line), no_wrap=not is_wrong, overflow="ellipsis"))
