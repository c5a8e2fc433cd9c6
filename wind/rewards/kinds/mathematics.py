"""Math rewards: 1 for the gold answer in any mathematical form, else 0."""

from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from wind.code.functions import source_digest
from wind.config.models import InferenceConfig
from wind.config.rewards import CorruptionConfig
from wind.errors import InputError
from wind.rewards import mathematics
from wind.rewards.functions import Floats, Responses, UserFunction, checked_numbers
from wind.rewards.kinds.base import Judge, RewardKind, scalar_judge
from wind.stages import Progress
from wind.store.datasets import Store

SETTING: Final = "reward.kind"
FUNCTION: Final = f"{mathematics.__name__}:{mathematics.verdicts.__name__}"


class Mathematics(RewardKind):
    """A comparison with the gold answers by math-verify."""

    kind: Literal["math"] = "math"
    corruption: CorruptionConfig | None = None

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return a judge that compares in a process of its own, as users' functions run."""
        return scalar_judge(MathReward(), self.corruption)

    def component_names(self) -> tuple[str, ...]:
        """Return the column that says where no answer could be read."""
        return ("unparsed",)

    def numbers(self, table: pa.Table) -> dict[str, float]:
        """Return the number of responses without an answer that could be read and compared."""
        return {"unparsed": pc.sum(table["unparsed"]).as_py()}


class MathReward:
    """A `RewardModel` that compares mathematical answers."""

    def __init__(self) -> None:
        self._function = UserFunction(SETTING, FUNCTION, source_digest(SETTING, FUNCTION))

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return 1 or 0 for each row, and whether it was unparsed.

        Raises InputError, naming the row, for a prompt without a gold answer.
        """
        for row, answer in enumerate(rows.answers):
            if answer is None:
                raise InputError(
                    f"{rows.where(row)} has no gold answer, which the reward math compares with: "
                    "set prompts.answer_field, or leave the prompt out"
                )
        columns = self._function(rows)
        progress(len(rows), len(rows))
        return {
            name: checked_numbers(f"{self._function}, column {name},", column, rows)
            for name, column in columns.items()
        }
