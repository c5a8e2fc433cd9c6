"""What every part of the config is made of."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, closed part of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
