"""The prompts of a run."""

import datetime
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from wind.config.base import Section
from wind.config.templates import TODAY, TemplateArguments


class PromptsConfig(Section):
    """Where prompts come from and how they become token ids."""

    beside_content: ClassVar = frozenset({"source", "template"})

    # a .jsonl, .parquet or .arrow file, a `datasets` folder on disk, or a Hub dataset id
    source: str
    # revision and configuration name of a Hub dataset
    revision: str | None = None
    subset: str | None = None
    # split of a folder or Hub dataset; required if it has several
    source_split: str | None = None
    # holds a string, or a list of messages: {role, content, ...}, or ShareGPT's {from, value}
    field: str = "prompt"
    # holds the gold answer; a row without this field has none
    answer_field: str = "answer"
    # "chat": the tokenizer's own; "none": raw text; or the path of a Jinja file
    template: str = "chat"
    template_arguments: TemplateArguments = Field(default_factory=dict)
    # what the template sees as today's date
    date: datetime.date = TODAY
    # system message for rows that lack one; may be empty
    system: str | None = None
    # last_user: drop everything after the last user message
    until: Literal["end", "last_user"] = "end"
    # share of prompts held out, chosen by a hash of the prompt
    eval_fraction: float = Field(0.1, gt=0, lt=1)
    # rows with the same value of this field share a split: the value is hashed, not the prompt
    group_field: str | None = None
    # longer prompts are dropped, and listed with that reason
    max_prompt_tokens: int = Field(1024, ge=1)
    # read only this many rows from the start of the source
    limit: int | None = Field(None, ge=2)
    # disjoint parts of the train split, by hash; iteration t samples part (t - 1) mod parts
    parts: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fits_the_template(self) -> Self:
        given = {
            "system": self.system is not None,
            "template_arguments": bool(self.template_arguments),
        }
        for name in given:
            if given[name] and self.template == "none":
                raise ValueError(
                    f"{name} is for a chat template, and template is none: remove one of them"
                )
        return self

    @model_validator(mode="after")
    def _groups_prompts(self) -> Self:
        if self.group_field == self.field:
            raise ValueError(
                f"group_field is the prompt itself, {self.field!r}: "
                "name a field that several prompts share"
            )
        return self
