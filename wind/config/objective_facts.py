"""The base of objective sections, and the facts each must state."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, get_origin

from pydantic import Field

from wind.config.base import Section

# auto: the selection of the objective's own paper
Rows = Literal["auto", "all", "best", "best_worst", "best_random"]
# optimizer steps between two rounds of fresh samples; null: train on stored samples
Refresh = Annotated[int | None, Field(ge=1)]
Minimum = Literal["quadratic", "other", "none"]

ANY: Final[tuple[Rows, ...]] = ("all", "best_worst", "best_random")
PAIR: Final[tuple[Rows, ...]] = ("best_worst", "best_random", "all")
ALL: Final[tuple[Rows, ...]] = ("all",)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about an objective that its parameters do not show.

    None has a default. `rows` lists the selections that it can be trained on, its own paper's
    first. It is `ALL` for an objective that compares a row with all other rows of its prompt.
    `least_samples` is the smallest number of samples of the policy per prompt.

    `minimum` is the kind of minimum that the loss has over tabular policies: that of a "quadratic"
    function of the log-probabilities, which Newton's method finds; some "other" one, which a line
    search finds; or "none", so that only a fixed number of descent steps defines an update.
    `compares_all_rows` says that the cost of the loss grows with the square of the rows in a batch,
    so that small batches are cheaper.
    """

    rows: tuple[Rows, ...]
    least_samples: int
    minimum: Minimum
    compares_all_rows: bool


class ObjectiveSection(Section):
    """Base of the objectives' sections.

    A section names its loss by a literal `name`, adds one field per keyword argument of the loss,
    and sets `facts`: a class variable, or a property where the facts depend on the parameters. A
    section without them raises TypeError on import. One whose policy can be sampled during training
    also has a field `refresh_steps`; one that distills an anchor extends `AnchoredObjectiveConfig`.
    """

    name: str

    # fields that say how samples are drawn, and are no arguments of the loss
    SAMPLING: ClassVar = frozenset({"name", "refresh_steps", "anchor_samples"})

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        """Raise TypeError for a section that leaves a required fact out."""
        super().__pydantic_init_subclass__(**settings)
        is_objective = get_origin(cls.model_fields["name"].annotation) is Literal
        for missing in sorted(cls.__abstractmethods__) if is_objective else ():
            meaning = (getattr(cls, missing).__doc__ or "").partition("\n")[0]
            raise TypeError(f"{cls.__name__} does not set `{missing}`: {meaning}")

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """The rows it trains on, its least samples, and its loss's shape."""

    def parameters(self) -> dict[str, Any]:
        """Return the keyword arguments of the loss."""
        return self.model_dump(exclude=set(self.SAMPLING))

    @property
    def learns_intercept(self) -> bool:
        """True if a head for the intercept is trained as well."""
        return False

    @property
    def steps_per_refresh(self) -> int | None:
        """Optimizer steps between two rounds of fresh samples; None for stored samples."""
        steps: int | None = getattr(self, "refresh_steps", None)
        return steps

    @property
    def draws_from_anchor(self) -> bool:
        """True if fresh samples come from the reference as well."""
        return False

    @property
    def least_anchor_samples(self) -> int:
        """The fewest fresh samples of the anchor per prompt, or 0."""
        return 0

    def anchor_samples_for(self, policy_samples: int) -> int:
        """Return the fresh samples of the anchor per prompt, or 0.

        `policy_samples` is the number of samples of the policy per prompt. 0 means that none are
        drawn.
        """
        return 0
