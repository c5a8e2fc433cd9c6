"""Judges: a language model behind an OpenAI-compatible endpoint."""

from collections.abc import Callable
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc

from wind.config.models import InferenceConfig
from wind.config.rewards import JudgeRewardConfig
from wind.endpoints import connect
from wind.errors import InputError
from wind.fingerprints import digest
from wind.rewards.columns import DATASET, UNPARSED_SHARE
from wind.rewards.kinds.base import Judge, RewardKind
from wind.store.datasets import Store

# what an endpoint says of a model that tells which one it is; not when it was started
IDENTIFYING = ("id", "root", "parent", "owned_by", "max_model_len")


class LLMJudge(RewardKind):
    """A judge: the model as its endpoint identifies it, and how it is asked."""

    kind: Literal["judge"] = "judge"
    # its id at the endpoint
    model: str
    # what the endpoint says of it
    endpoint: dict[str, str | int]
    revision: str | None = None
    mode: Literal["pairwise", "scalar"] = "pairwise"
    # Jinja text
    template: str
    orders: Literal["both", "one"] = "both"
    scale: tuple[int, int] = (1, 10)
    format: Literal["free", "choice", "json_schema"] = "free"
    temperature: float = 0.0
    max_tokens: int = 512
    attempts: int = 3
    seed: int = 0

    @classmethod
    def resolve(cls, store: Store, config: JudgeRewardConfig) -> Self:
        """Ask the endpoint which model it serves, and read the template.

        Raises ConfigError for a template that cannot be used, StageError if no replica answers, and
        InputError if the endpoint does not serve the model or its replicas differ.
        """
        from wind.rewards.questions import question_template

        template = question_template(config.mode, config.template)
        settings = ("mode", "orders", "scale", "format", "temperature", "max_tokens", "attempts")
        identity = _identity(config)
        judge = cls(
            model=str(identity["id"]),
            endpoint=identity,
            revision=config.revision,
            template=template,
            seed=config.seed,
            **{name: getattr(config, name) for name in settings},
        )
        connect({judge.identity(): config.connection()})
        return judge

    @property
    def gives_preferences(self) -> bool:
        """Whether it compares responses."""
        return self.mode == "pairwise"

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return a judge that asks the endpoint what the store does not know."""
        from wind.rewards.judging import JudgeReward

        asking = JudgeReward(store, self)
        if self.gives_preferences:
            return asking.preferences
        return lambda rows, opponents, progress: asking.rewards(rows, progress)

    def component_names(self) -> tuple[str, ...]:
        """Return the share of comparisons without a verdict, where there are comparisons."""
        return (UNPARSED_SHARE,) if self.gives_preferences else ()

    def row_schema(self, *, has_opponents: bool = False) -> pa.Schema:
        """Return the columns of the dataset `rewards`, scored against opponents or not."""
        if not self.gives_preferences:
            return DATASET.schema
        further = pa.field(UNPARSED_SHARE, pa.float64(), nullable=False)
        return DATASET.with_optional_columns().append(further)

    def numbers(self, table: pa.Table) -> dict[str, float]:
        """Return the share of comparisons without a verdict."""
        if not self.gives_preferences:
            return {}
        return {UNPARSED_SHARE: pc.mean(table[UNPARSED_SHARE]).as_py()}

    def identity(self) -> str:
        """Return the digest of everything that determines its rewards."""
        return digest(self.model_dump(mode="json"))

    def answers_identity(self) -> str:
        """Return the digest of everything that determines its answer to a question.

        Neither how often nor in which orders it is asked does.
        """
        beside = {"orders", "attempts", "scale", "seed"}
        return digest(self.model_dump(mode="json", exclude=beside))


def model_identity(
    get: Callable[[str], Any], model: str | None, revision: str | None
) -> dict[str, str | int]:
    """Return what an endpoint says of a model, or of the only one that it serves.

    `get` gets a path from it. Raises InputError if it does not serve the model.
    """
    try:
        listed = get("/models")
        served = {each["id"]: each for each in listed["data"]}
    except InputError as error:
        # an endpoint without a list of models
        if model is None or revision is None:
            raise InputError(
                f"{error}: set reward.model and reward.revision for an endpoint that does not "
                "say what it serves"
            ) from None
        return {"id": model}
    except (KeyError, TypeError):
        raise InputError(
            "reward.url does not list its models: name an OpenAI-compatible endpoint, such as "
            "http://localhost:8000/v1"
        ) from None
    if model is None and len(served) != 1:
        raise InputError(
            f"reward.url serves {len(served)} models: set reward.model to one of {_some(served)}"
        )
    found = served.get(next(iter(served)) if model is None else model)
    if found is None:
        raise InputError(
            f"reward.url does not serve {model}: set reward.model to one of {_some(served)}"
        )
    return {
        name: found[name]
        for name in IDENTIFYING
        if isinstance(found.get(name), str | int) and not isinstance(found[name], bool)
    }


def _identity(config: JudgeRewardConfig) -> dict[str, str | int]:
    """Ask every replica which model it serves.

    One that does not answer now is asked before it judges.
    """
    from wind.endpoints.client import Endpoint  # httpx takes a while to import

    with Endpoint(config.connection().for_identity(), "reward") as endpoint:
        found = endpoint.each(lambda get: model_identity(get, config.model, config.revision))
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise InputError(
                f"reward.url: {first} serves {found[first]} and {other} {found[other]}: name "
                "replicas of one model"
            )
    return found[first]


def _some(names: Any) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
