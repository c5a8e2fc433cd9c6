"""The base of every kind of reward, as a spec holds one."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa

from wind.config.base import Section
from wind.config.models import DType, InferenceConfig, PolicyConfig
from wind.config.rewards import REWARD_SECTIONS, CorruptionConfig
from wind.errors import ConfigError, WindError
from wind.files import plain_text
from wind.rewards.columns import DATASET
from wind.rewards.functions import Floats, Responses
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Model

# Turns responses, and the opponents to compare them with (None: their siblings), into columns with
# one entry per response.
Judge = Callable[[Responses, Responses | None, Progress], Mapping[str, Any]]


class RewardKind(Section):
    """A reward as a spec holds it, without any path.

    It has settings, digests of code, and handles of stored models. A kind adds its settings, a
    field `kind` (a Literal with one value, which is the default), and `judge`. The other methods
    describe a reward that scores each response by itself, reads no stored model and has no
    components; a kind overrides those that differ.
    """

    @property
    def gives_preferences(self) -> bool:
        """Whether a row holds a preference for each other response to the prompt."""
        return False

    @classmethod
    def resolve(cls, store: Store, config: Any) -> Self:
        """Return the reward for `config`, this kind's section of a recipe.

        By default it has the same settings. A kind whose section names paths or code overrides
        this. It imports neither the user's function nor torch, and raises ConfigError or
        InputError, in one line.
        """
        return cls.model_validate(config.model_dump())

    @abstractmethod
    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return what rewards responses on `device`; the model it loads stays loaded.

        One call of a user's function may take `function_seconds`, or any time if that is None.
        """

    @property
    def is_relative(self) -> bool:
        """Whether a reward depends on the responses that it is given with.

        Rewards of two policies can then be compared only if one was scored against the other, as
        its opponents: the rows hold preferences over these.
        """
        return self.gives_preferences

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads the token ids and the end of a response, beside its text."""
        return False

    def parents(self) -> dict[str, AnyHandle]:
        """Return the stored inputs, by field name."""
        return {name: value for name, value in self if isinstance(value, AnyHandle)}

    def component_names(self) -> tuple[str, ...]:
        """Return the columns that the reward has besides `reward`."""
        return ()

    def row_schema(self, *, has_opponents: bool = False) -> pa.Schema:
        """Return the columns of the dataset `rewards`, scored against opponents or not."""
        if self.gives_preferences:
            return DATASET.with_optional_columns()
        return DATASET.with_components(self.component_names())

    def numbers(self, table: pa.Table) -> dict[str, float]:
        """Return numbers about the finished dataset that only this kind has."""
        return {}


class RewardModel(Protocol):
    """A model or function that scores each response by itself."""

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return the column `reward` and one per component.

        Each has a finite float for each of `rows`. Raises InputError if it cannot.
        """
        ...


def scalar_judge(model: RewardModel, corruption: CorruptionConfig | None) -> Judge:
    """Return a judge that scores each response by itself.

    It plants the faults of `corruption`, if any.
    """
    if corruption is not None:
        from wind.rewards.corruption import CorruptedReward

        model = CorruptedReward(model, corruption)
    return lambda rows, opponents, progress: model.rewards(rows, progress)


def inference_of(
    inference: InferenceConfig, dtype: DType | None, batch_tokens: int | None
) -> InferenceConfig:
    """Return `inference` with a reward model's own dtype and batch size, where it has them."""
    own = {"dtype": dtype, "batch_tokens": batch_tokens}
    return inference.model_copy(
        update={name: value for name, value in own.items() if value is not None}
    )


@contextmanager
def called(setting: str, kind: str) -> Iterator[None]:
    """Call a reward by its dotted `setting` in errors that call it `reward`.

    They name settings of its `kind`.
    """
    names = "|".join(REWARD_SECTIONS[kind].model_fields)
    try:
        yield
    except WindError as error:
        message = re.sub(rf"(?<![\w./-])reward\.(?=({names})\b)", f"{setting}.", str(error))
        raise type(error)(message) from error


def import_model(store: Store, path: str, revision: str | None) -> Model:
    """Copy the sequence-classification model that `reward.path` names into the store."""
    from wind.models import import_policy

    try:
        named = PolicyConfig(path=path, revision=revision)
        return import_policy(store, named, "AutoModelForSequenceClassification")
    except ConfigError as error:
        # The message was written for the policy's own section of the config.
        message = str(error)
        raise ConfigError(
            f"reward{message.removeprefix('policy')}" if message.startswith("policy") else message
        ) from error


def template_text(template: str) -> str:
    """Return the text of a Jinja file, or "chat" or "none".

    Those two are returned as they are.
    """
    if template in ("chat", "none"):
        return template
    try:
        return plain_text(Path(template))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward.template {template} cannot be read: "
            f'name "chat", "none" or a Jinja file ({error})'
        ) from error
