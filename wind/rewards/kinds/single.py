"""The kinds of reward that may be part of a mix.

Each is a module here, with its section of a recipe in `wind.config.rewards`. A new kind is listed
in `Single`; nothing else asks which kind a reward is.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, get_args

from pydantic import Field

from wind.rewards.kinds.classifier import Classifier
from wind.rewards.kinds.judge import LLMJudge
from wind.rewards.kinds.mathematics import Mathematics
from wind.rewards.kinds.overlong import Overlong
from wind.rewards.kinds.pairwise import Pairwise
from wind.rewards.kinds.remote import Remote
from wind.rewards.kinds.repetition import Repetition
from wind.rewards.kinds.rule import Rule
from wind.store.datasets import Store

Single = Rule | Classifier | Pairwise | LLMJudge | Remote | Overlong | Repetition | Mathematics
SingleReward = Annotated[Single, Field(discriminator="kind")]
SINGLES: Final[Mapping[str, Callable[[Store, Any], Single]]] = {
    kind.model_fields["kind"].default: kind.resolve for kind in get_args(Single)
}
