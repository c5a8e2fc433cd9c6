"""The table of docs/datasets.md, from the declarations of the stages.

`python -m tests.dataset_table` writes it into the page.
"""

from pathlib import Path
from typing import Final

from wind.store.nouns import STAGES, STUDIES
from wind.store.schemas import declared

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "datasets.md"
HEAD: Final = "| dataset | one row is | key | columns beyond the key |\n|---|---|---|---|\n"


def table() -> str:
    """Return the table: a line for each dataset, in the order of a run."""
    return HEAD + "".join(_line(noun) for noun in (*STAGES, *STUDIES))


def _line(noun: str) -> str:
    declaration = declared(noun)
    columns = [column.name for column in declaration.columns if column.name not in declaration.key]
    columns += [f"{column.name}*" for column in declaration.optional_columns]
    columns += ["one per component*"] if declaration.has_components else []
    return f"| {noun} | {declaration.row} | {', '.join(declaration.key)} | {', '.join(columns)} |\n"


def main() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text().partition(HEAD)
    after = rest[rest.index("\n\n") + 1 :]
    PAGE.write_text(before + table() + after)


if __name__ == "__main__":
    main()
