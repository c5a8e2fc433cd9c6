"""Settings of a chat template, shared by prompts and reward models."""

import datetime
import json
from typing import Annotated

from pydantic import AfterValidator, JsonValue

# The date a template sees when it asks for today's. With the real one, the same row would become
# a different prompt tomorrow.
TODAY = datetime.date(2024, 7, 26)

# Names that a template receives anyway, or that would reach its tokenizer instead: the parameters
# of `apply_chat_template`, and the two responses that a pairwise reward adds.
TAKEN = (
    "self",
    "conversation",
    "conversations",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "strftime_now",
    "response_a",
    "response_b",
)


def _refuse_taken(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in arguments:
        if name in TAKEN:
            raise ValueError(f"{name} is no argument of a template but of what calls it: remove it")
    json.dumps(arguments, allow_nan=False)
    return arguments


# Variables for the template, such as `enable_thinking: false`.
TemplateArguments = Annotated[dict[str, JsonValue], AfterValidator(_refuse_taken)]
