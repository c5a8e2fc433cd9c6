"""The screens that `wind browse` lays over its own: a choice, a note being written, and help."""

from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static, TextArea
from textual.widgets.option_list import Option

from wind.inspection.fields import FIELDS
from wind.inspection.notes import LONGEST
from wind.machine.terminal import harmless

KEYS: Final = (
    ("j k", "the next and the previous prompt"),
    ("n N", "the next and the previous sample"),
    ("i I", "the next and the previous iteration"),
    ("space b", "scroll the responses"),
    ("/", "search the prompts for a text, or the first digits of an id"),
    ("f", 'filter, such as: reward_gain > 0.2 and text ~ "capital"'),
    ("s", "sort by a field; by the same field again in the other direction"),
    ("d", "the selected sample word by word beside the iteration before"),
    ("t", "special tokens"),
    ("m", "flag the prompt, or take the flag away"),
    ("e", "write a note"),
    ("l", "light or dark"),
    ("escape", "leave a line, or drop search and filter"),
    ("q", "quit"),
)


class Fields(ModalScreen[str | None]):
    """A list of all fields, of which one is chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave"),
        Binding("j", "cursor(1)"),
        Binding("k", "cursor(-1)"),
    ]

    def __init__(self, chosen: str) -> None:
        super().__init__()
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        """Lay out a line for each field: its name and what it means."""
        options = [
            Option(Text.assemble((f"{name:15}", "bold"), field.meaning), id=name)
            for name, field in FIELDS.items()
        ]
        yield OptionList(*options, markup=False, compact=True)

    def on_mount(self) -> None:
        """Begin at the field that is sorted by."""
        names = list(FIELDS)
        if self._chosen in names:
            self.query_one(OptionList).highlighted = names.index(self._chosen)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the field."""
        self.dismiss(event.option_id)

    def action_cursor(self, by: int) -> None:
        """Go to another field."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if by > 0 else options.action_cursor_up()

    def action_leave(self) -> None:
        """Choose none."""
        self.dismiss(None)


class Writing(ModalScreen[str | None]):
    """A note that is being written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", priority=True),
        Binding("escape", "leave", priority=True),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Lay out the note and how it is kept."""
        with Vertical():
            yield Static("a note on this prompt: ctrl+s keeps it, escape does not", markup=False)
            # a note may be somebody else's: it is harmless, and its line breaks stay
            yield TextArea("\n".join(map(harmless, self._text.split("\n"))))

    def on_mount(self) -> None:
        """Begin at the end."""
        area = self.query_one(TextArea)
        area.focus()
        area.move_cursor(area.document.end)

    def action_keep(self) -> None:
        """Return the text."""
        self.dismiss(self.query_one(TextArea).text[:LONGEST])

    def action_leave(self) -> None:
        """Return nothing."""
        self.dismiss(None)


class Help(ModalScreen[None]):
    """What the keys do; any key leaves it."""

    def compose(self) -> ComposeResult:
        """Lay out a line for each key."""
        lines = [Text.assemble((f"{keys:9}", "bold"), meaning) for keys, meaning in KEYS]
        yield Static(Text("\n").join(lines), markup=False)

    def on_key(self) -> None:
        """Leave."""
        self.dismiss()
