"""Log-probabilities of the responses under the sampling policy and the reference.

One row is one generation; both models are frozen. Both numbers come from forward passes of the
model that training uses, not from the sampler, so that the log-ratios of an objective compare like
with like (MATH section 0: sums over response tokens including the stop token). A prompt is computed
once for its responses (`wind.models.shared_prefixes`), which changes a number by rounding at most.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.config.models import InferenceConfig
from wind.errors import DatasetError, InputError
from wind.stages import Place, Progress, Role, Shard, Spec, Stage, as_many_as, no_function
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model, label
from wind.store.schemas import PROMPT_ID, SAMPLE, SAMPLE_INDEX, Column, Declaration, ForeignKey

if TYPE_CHECKING:
    import torch


DATASET = Declaration(
    row="one response under the frozen models",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("logp_policy", pa.float64(), "nats <= 0, sum over response tokens"),
        Column("logp_reference", pa.float64(), "nats <= 0, likewise, under the reference"),
        Column("response_tokens", pa.int32(), ">= 1"),
    ),
    key=SAMPLE,
    foreign_keys=(ForeignKey(SAMPLE, "generations", is_one_to_one=True),),
)


class LogpsSpec(Spec):
    """The generations to score and the two models that score them."""

    prompts: Dataset
    generations: Dataset
    policy: Model
    reference: Model
    inference: InferenceConfig


def shards(spec: LogpsSpec, store: Store) -> int:
    """Return the number of shards, which is that of the generations."""
    return len(store.manifest(spec.generations).files)


def compute(spec: LogpsSpec, store: Store, index: int, place: Place, progress: Progress) -> Shard:
    """Score the rows of the generations' shard `index`.

    The unit of `progress` is one scored sequence.
    """
    rows = _rows(spec, store, index)
    models = [spec.policy] if spec.policy == spec.reference else [spec.policy, spec.reference]
    total = len(rows) * len(models)
    scored = {}
    for number, model in enumerate(models):
        before = number * len(rows)
        scored[model] = _score(
            spec,
            store,
            model,
            rows,
            place,
            lambda done, before=before: progress(before + done, total),
        )
    table = pa.table(
        {
            "prompt_id": rows["prompt_id"].to_arrow().cast(pa.string()),
            "sample_index": rows["sample_index"].to_arrow(),
            "logp_policy": scored[spec.policy],
            "logp_reference": scored[spec.reference],
            "response_tokens": rows["response_token_ids"].list.len().cast(pl.Int32).to_arrow(),
        }
    )
    return Shard(table)


def numbers(spec: LogpsSpec, table: pa.Table) -> dict[str, float]:
    """Return the mean log-probability and the mean log-ratio, in nats.

    The first is under the policy. The second is of the policy to the reference: the plain estimate
    of the KL divergence.
    """
    policy, reference = table.column("logp_policy"), table.column("logp_reference")
    return {
        "mean_logp_policy": pc.mean(policy).as_py(),
        "mean_kl_k1": pc.mean(pc.subtract(policy, reference)).as_py(),
    }


def _rows(spec: LogpsSpec, store: Store, index: int) -> pl.DataFrame:
    """Return one shard's generations with their prompts' token ids, in key order.

    Raises DatasetError if a prompt is missing.
    """
    generations = store.frame(
        spec.generations, ["prompt_id", "sample_index", "response_token_ids"], index
    )
    prompts = store.frame(spec.prompts, ["prompt_id", "prompt_token_ids"])
    rows = generations.join(prompts, on="prompt_id", how="left", maintain_order="left")
    unknown = rows.filter(pl.col("prompt_token_ids").is_null())["prompt_id"]
    if len(unknown):
        raise DatasetError(
            f"{label(spec.generations)} answers prompt {unknown[0]}, "
            f"which {label(spec.prompts)} does not hold"
        )
    return rows


def _score(
    spec: LogpsSpec, store: Store, model: Model, rows: pl.DataFrame, place: Place, progress: Any
) -> list[float]:
    """Return the log-probability of every row under `model`, in nats.

    They are in row order. Raises InputError naming the prompt if one is not finite.
    """
    from wind.models import deterministic, load_policy
    from wind.models.sequence_logps import verify_head

    policy = load_policy(store, model, spec.inference, place.device)
    verify_head(policy)
    with deterministic():
        logps = response_logps(
            label(model),
            policy,
            rows["prompt_id"].to_list(),
            rows["prompt_token_ids"].to_list(),
            rows["response_token_ids"].to_list(),
            spec.inference.batch_tokens,
            progress,
        )
    for prompt_id, logp in zip(rows["prompt_id"], logps, strict=True):
        if not -float("inf") < logp < float("inf"):
            raise InputError(
                f"{label(model)} gives log-probability {logp} to a response of prompt {prompt_id}: "
                "it diverged in training"
            )
    return logps


def response_logps(
    name: str,
    policy: Any,
    prompt_ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    batch_tokens: int,
    progress: Callable[[int], None],
) -> list[float]:
    """Return the log-probability of every row under the loaded `policy`, in nats.

    A row is a prompt and a response, token ids; rows with the same `prompt_ids` have the same
    prompt, which is computed once. `name` is what messages call the policy, and `progress` hears
    how many rows are done.
    """
    import torch

    from wind.models.sequence_logps import SequenceLogps
    from wind.models.shared_prefixes import Group, SharedPrefixes

    scorer, decoder = SequenceLogps(policy), policy.get_decoder()

    def forward(rows: list[int], start: int, past: Mapping[str, Any]) -> list[float]:
        whole = padded([prompts[row] for row in rows], [responses[row] for row in rows])
        ids_B_T, attention_B_T, response_B_T = (
            tensor[:, start:].to(decoder.device) for tensor in whole
        )
        if start == 0:
            return list(scorer(ids_B_T, attention_B_T, response_B_T).tolist())
        positions_T = start + torch.arange(ids_B_T.shape[1], device=decoder.device)
        states_B_T_H = decoder(
            input_ids=ids_B_T, position_ids=positions_T.expand_as(ids_B_T), **past
        ).last_hidden_state
        return list(scorer.response_logps(states_B_T_H, ids_B_T, response_B_T).tolist())

    members: dict[str, list[int]] = {}
    for row, prompt_id in enumerate(prompt_ids):
        members.setdefault(prompt_id, []).append(row)
    with torch.inference_mode():
        return SharedPrefixes(name, policy, decoder).outputs(
            [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)],
            # each response keeps the last token of its prompt, which predicts its first one
            [Group(tuple(rows), len(prompts[rows[0]]) - 1) for rows in members.values()],
            batch_tokens,
            forward,
            progress,
        )


def padded(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return token ids, attention mask and response mask, each [B, T].

    A row is `prompt + response`, padded on the right with id 0.
    """
    import torch

    width = max(
        len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)
    )
    ids_B_T = torch.zeros((len(prompts), width), dtype=torch.long)
    attention_B_T = torch.zeros((len(prompts), width), dtype=torch.bool)
    response_B_T = torch.zeros((len(prompts), width), dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids_B_T[row, :end] = torch.tensor([*prompt, *response])
        attention_B_T[row, :end] = True
        response_B_T[row, len(prompt) : end] = True
    return ids_B_T, attention_B_T, response_B_T


STAGE: Final[Stage[LogpsSpec]] = Stage(
    name="logps",
    spec=LogpsSpec,
    dataset=DATASET,
    dropped=None,
    shards=shards,
    compute=compute,
    numbers=numbers,
    worker=lambda spec: "transformers",
    role=Role(
        phase="training",
        sides=("", "eval_"),
        side=lambda spec, side_of: side_of(spec.generations),
        history=("train",),
        is_timed=True,
        has_drift=False,
        expected=as_many_as("generations"),
        related_parents={},
        function_seconds=no_function,
    ),
)
