"""The base of all stored, transmitted or returned records."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record that accepts exactly the fields it declares."""

    model_config = ConfigDict(frozen=True, extra="forbid")
