"""Details: one prompt and everything recorded about its responses in one version.

All of it is read by key: see `wind.inspection.slices`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from wind.errors import ConfigError, DatasetError
from wind.inspection.slices import Slices
from wind.records import Record
from wind.store.handles import Dataset
from wind.store.versions import Version

Split = Literal["train", "eval"]
# Columns that a response has by name, those that a reader never asks for, and what the evaluation
# calls them. Everything else that a dataset of rewards has is a component.
RESPONSE: Final = (
    "response",
    "finish_reason",
    "reward",
    "win_rate",
    "wins",
    "ties",
    "losses",
    "tie_share",
    "rank",
    "role",
    "label",
    "logp_sampler",
    "logp_policy",
    "logp_reference",
    "accuracy",
    "step",
    "drawn_from",
)
OF_POLICY: Final = {"accuracy_policy": "accuracy", "reward_policy": "reward"}
# Datasets of responses by split, in the order in which they are joined.
TRAINED: Final = ("generations", "rewards", "win_rates", "selections", "logps")
EVALUATED: Final = ("eval_generations", "eval_rewards", "evaluation", "eval_logps")
REFERENCE: Final = ("reference_generations", "reference_rewards")


class Response(Record):
    """One response and what is recorded about it."""

    sample_index: int
    response: str
    tokens: int
    finish_reason: str
    reward: float | None = None
    components: dict[str, float | None] = {}
    # of a held-out prompt against the reference's or initial policy's responses
    win_rate: float | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    tie_share: float | None = None
    rank: int | None = None  # 1 is best
    role: str | None = None  # in training
    label: float | None = None
    logp_sampler: float | None = None
    logp_policy: float | None = None
    logp_reference: float | None = None
    accuracy: float | None = None
    step: int | None = None  # of a rollout
    drawn_from: str | None = None


class Verdict(Record):
    """What one judge said about one response against one opponent."""

    judge: str
    opponent: str
    sample_index: int
    reward_policy: float | None = None
    reward_opponent: float | None = None
    win_rate: float | None = None
    tie_share: float | None = None


class Detail(Record):
    """One prompt and its responses in one version."""

    version: str  # RUN@NUMBER
    iteration: int
    policy: str  # fingerprint of the model that gave the responses
    prompt_id: str
    split: str
    prompt: str  # rendered, exactly what the token ids spell
    messages: list[dict[str, str]]
    answer: str | None
    meta: str
    responses: list[Response]  # by sample_index, and by step on policy
    # of the reference or the initial policy, with whose responses the evaluation compares
    against: list[Response] = []
    verdicts: list[Verdict] = []
    damage: list[str] = []  # what could not be read


def detail(
    version: Version, datasets: Mapping[str, Dataset], prompt_id: str, slices: Slices
) -> Detail:
    """Read everything about the prompt in `version`, whose datasets `lineage.named` gives.

    Raises ConfigError if the version has no such prompt, DatasetError if the prompts cannot be
    read. Other datasets that cannot be read are named in `damage`.
    """
    found = slices.under(datasets["prompts"], ["prompt_id"], [prompt_id]).to_pylist()
    if not found:
        raise ConfigError(f"{version.run}@{version.number} has no prompt {prompt_id!r}")
    prompt, content = found[0], version.content
    damage: list[str] = []
    is_held_out = prompt["split"] == "eval"
    verdicts = []
    if is_held_out and "matches" in datasets:
        verdicts = _verdicts(slices, datasets["matches"], prompt_id, damage)
    return Detail(
        version=f"{version.run}@{version.number}",
        iteration=content.iteration,
        policy=(content.model_out if is_held_out else content.model_in).fingerprint,
        **{
            name: prompt[name]
            for name in ("prompt_id", "split", "prompt", "messages", "answer", "meta")
        },
        responses=responses(slices, datasets, prompt_id, prompt["split"], damage),
        against=_read(slices, datasets, REFERENCE, prompt_id, damage) if is_held_out else [],
        verdicts=verdicts,
        damage=damage,
    )


def responses(
    slices: Slices,
    datasets: Mapping[str, Dataset],
    prompt_id: str,
    split: str,
    damage: list[str],
) -> list[Response]:
    """Read the policy's responses to a prompt, with what other datasets say about them."""
    if split == "eval":
        found = _read(slices, datasets, EVALUATED, prompt_id, damage)
        return _ranked(found)
    if "rollouts" in datasets:
        return _rollouts(slices, datasets["rollouts"], prompt_id, damage)
    return _read(slices, datasets, TRAINED, prompt_id, damage)


def token_ids(
    slices: Slices, datasets: Mapping[str, Dataset], prompt_id: str, split: str
) -> tuple[list[int], list[list[int]]]:
    """Read the token ids of a prompt and of the policy's responses, in their order."""
    prompts = slices.under(datasets["prompts"], ["prompt_id"], [prompt_id], ["prompt_token_ids"])
    columns = ["response_token_ids"]
    if split != "eval" and "rollouts" in datasets:
        found = [
            ids
            for step in slices.values(datasets["rollouts"], ["step"])
            for ids in slices.under(
                datasets["rollouts"], ["step", "prompt_id"], [*step, prompt_id], columns
            )["response_token_ids"].to_pylist()
        ]
        return prompts["prompt_token_ids"].to_pylist()[0], found
    name = "eval_generations" if split == "eval" else "generations"
    if name not in datasets:
        return prompts["prompt_token_ids"].to_pylist()[0], []
    rows = slices.under(datasets[name], ["prompt_id"], [prompt_id], columns)
    return prompts["prompt_token_ids"].to_pylist()[0], rows["response_token_ids"].to_pylist()


def _read(
    slices: Slices,
    datasets: Mapping[str, Dataset],
    names: Sequence[str],
    prompt_id: str,
    damage: list[str],
) -> list[Response]:
    """Join the rows of the prompt in the datasets called `names` by sample."""
    rows: dict[int, dict[str, Any]] = {}
    for name in names:
        if name not in datasets:
            continue
        try:
            table = slices.under(datasets[name], ["prompt_id"], [prompt_id])
        except DatasetError as error:
            damage.append(str(error))
            continue
        for row in table.to_pylist():
            known = rows.setdefault(row["sample_index"], {})
            told = {OF_POLICY.get(column, column): value for column, value in row.items()}
            if name.endswith("rewards"):
                known["components"] = _components(row)
            known.update({column: known.get(column, value) for column, value in told.items()})
    return [_response(row) for _, row in sorted(rows.items()) if "response" in row]


def _rollouts(slices: Slices, handle: Dataset, prompt_id: str, damage: list[str]) -> list[Response]:
    """Read the responses that were drawn in training, step by step."""
    try:
        rows = [
            row
            for step in slices.values(handle, ["step"])
            for row in slices.under(handle, ["step", "prompt_id"], [*step, prompt_id]).to_pylist()
        ]
    except DatasetError as error:
        damage.append(str(error))
        return []
    return [_response(row | {"components": _components(row)}) for row in rows]


def _components(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: _finite(value)
        for name, value in row.items()
        if isinstance(value, float) and name not in RESPONSE
    }


def _response(row: Mapping[str, Any]) -> Response:
    told = {name: row.get(name) for name in RESPONSE if row.get(name) is not None}
    return Response(
        sample_index=row["sample_index"],
        tokens=len(row["response_token_ids"]),
        components=row.get("components", {}),
        **{
            name: _finite(value) if isinstance(value, float) else value
            for name, value in told.items()
        },
    )


def _ranked(found: list[Response]) -> list[Response]:
    """Rank responses by reward, as win rates rank those of training prompts."""
    if any(each.reward is None for each in found):
        return found
    order = sorted(found, key=lambda each: (-(each.reward or 0.0), each.sample_index))
    ranks = {each.sample_index: rank for rank, each in enumerate(order, 1)}
    return [each.model_copy(update={"rank": ranks[each.sample_index]}) for each in found]


def _verdicts(slices: Slices, handle: Dataset, prompt_id: str, damage: list[str]) -> list[Verdict]:
    columns = list(Verdict.model_fields)
    try:
        return [
            Verdict(
                **{
                    name: _finite(value) if isinstance(value, float) else value
                    for name, value in row.items()
                }
            )
            for pair in slices.values(handle, ["judge", "opponent"])
            for row in slices.under(
                handle, ["judge", "opponent", "prompt_id"], [*pair, prompt_id], columns
            ).to_pylist()
        ]
    except DatasetError as error:
        damage.append(str(error))
        return []


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
