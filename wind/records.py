"""The base of every record that is stored, sent to another process, or handed to a user."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record with exactly the fields it declares; an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
