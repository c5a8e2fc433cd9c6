"""Declarations of datasets, and what they require of stored rows.

Each stage declares its dataset in its own module; `declared` finds the declaration by the dataset's
noun. Columns are non-null unless marked. Every write casts to the declared schema, and fails if
that is impossible. Rows are sorted by key.

Datasets stay readable: a release that changes a schema may only add nullable columns after the
others, and then raises `VERSION`. Readers of an older dataset see those columns as null; nothing is
rewritten, and its fingerprint stays the same.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa

from wind.errors import DatasetError, first_line
from wind.store.nouns import STAGES, STUDIES, record_of

VERSION: Final = 1

MESSAGE: Final = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
    ]
)
TOKENS: Final = pa.list_(pa.field("item", pa.int32(), nullable=False))

# Key columns that several datasets share.
PROMPT: Final = ("prompt_id",)
SAMPLE: Final = ("prompt_id", "sample_index")


@dataclass(frozen=True)
class Column:
    """One column of a dataset."""

    name: str
    type: pa.DataType
    meaning: str  # with unit and range, for the cards of exported datasets
    is_nullable: bool = False

    def field(self) -> pa.Field:
        """Return the Arrow field of the column."""
        return pa.field(self.name, self.type, nullable=self.is_nullable)


PROMPT_ID: Final = Column("prompt_id", pa.string(), "key of its prompt")
SAMPLE_INDEX: Final = Column("sample_index", pa.int32(), "0 .. N-1, of the N of its prompt")


@dataclass(frozen=True)
class ForeignKey:
    """Columns that refer to rows of another dataset, or to a model.

    Their values are keys of that dataset, or the fingerprint of that model. It is the parent that
    the dataset's spec calls `parent`.
    """

    columns: tuple[str, ...]
    parent: str
    is_one_to_one: bool = False  # whether every key of the parent has a row, too


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The rows, columns, and keys of a dataset."""

    row: str  # what one row is
    columns: tuple[Column, ...]
    # Columns that come next in some datasets of this noun.
    optional_columns: tuple[Column, ...] = ()
    # Whether a column for each component of the reward comes last.
    has_components: bool = False
    # Whether models are among the outputs published with the dataset.
    has_models: bool = False
    key: tuple[str, ...]
    foreign_keys: tuple[ForeignKey, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the columns that every such dataset has."""
        return pa.schema([column.field() for column in self.columns])

    def meanings(self) -> dict[str, str]:
        """Return the meaning of each declared or optional column, by name."""
        return {each.name: each.meaning for each in (*self.columns, *self.optional_columns)}

    def with_optional_columns(self) -> pa.Schema:
        """Return the schema of a dataset that has the optional columns, too."""
        return pa.schema([*self.schema, *(column.field() for column in self.optional_columns)])

    def with_components(self, components: tuple[str, ...]) -> pa.Schema:
        """Return the schema with a column for each component of the reward.

        Those columns hold numbers and no nulls.
        """
        further = (pa.field(name, pa.float64(), nullable=False) for name in components)
        return pa.schema([*self.schema, *further])


def find_declaration(noun: str) -> Declaration | None:
    """Find the declaration of the dataset `noun`.

    Returns None if no stage makes such a dataset. Besides its dataset, a stage may publish the rows
    that it dropped, as `<noun>.dropped`.
    """
    stage, _, part = noun.partition(".")
    if stage not in (*STAGES, *STUDIES) or part not in ("", "dropped"):
        return None
    record = record_of(stage)
    found: Declaration | None = record.dropped if part else record.dataset
    return found


def declared(noun: str) -> Declaration:
    """Return the declaration of the dataset `noun`.

    Raises DatasetError if no stage makes such a dataset.
    """
    if (found := find_declaration(noun)) is None:
        raise DatasetError(f"no stage makes a dataset called {noun!r}")
    return found


def evolved(name: str, stored: pa.Schema, version: int) -> pa.Schema:
    """Return the schema that readers of a stored dataset see.

    It is the stored schema, followed by the columns that were added after `version`, the schema
    version that the dataset was written with. Raises DatasetError if a newer release wrote the
    dataset, or if it lacks a column that may not be null.
    """
    if version > VERSION:
        raise DatasetError(
            f"{name} has schema version {version}, and this release knows {VERSION}: update it"
        )
    declaration = find_declaration(name)
    declared_fields = () if declaration is None else declaration.schema
    added = [field for field in declared_fields if field.name not in stored.names]
    required = [field.name for field in added if not field.nullable]
    if required:
        raise DatasetError(
            f"{name} of schema version {version} lacks {', '.join(required)}: "
            "rerun the stage that makes it"
        )
    return pa.schema([*stored, *added])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast `table` to `schema`: its columns, their order, types, and nullability.

    Raises DatasetError if a column is missing or undeclared, or does not fit its type.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra or len(table.column_names) != len(schema):
        raise DatasetError(f"columns do not fit the schema: missing {missing}, undeclared {extra}")
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DatasetError(
            f"a column does not fit its declared type: {first_line(error)}"
        ) from error
    for field, column in zip(schema, table.columns, strict=True):
        for chunk in column.chunks:
            _require_values(field.name, field, chunk)
    return table.combine_chunks()


def _require_values(name: str, field: pa.Field, values: pa.Array) -> None:
    """Raise DatasetError for a null where `field` allows none, at any depth.

    Arrow itself does not check inside lists.
    """
    if not field.nullable and values.null_count:
        raise DatasetError(f"column {name} has {values.null_count} nulls and must have none")
    if pa.types.is_list(field.type):
        _require_values(f"{name}[]", field.type.value_field, values.flatten())
    elif pa.types.is_struct(field.type):
        for child, content in zip(field.type, values.drop_null().flatten(), strict=True):
            _require_values(f"{name}.{child.name}", child, content)
