"""Generations: N responses of one policy to every prompt of a split.

Token ids go in and token ids come out. One row is one sampled response with the log-probability its
sampler saw. A response's random numbers come from its own seed, which depends only on the run's
seed, the iteration, the split, the prompt and the sample index: never on the shard, its neighbors
or the worker. The engine is a `Sampler` that `SAMPLERS` lists: transformers (`hf`) or vLLM
(`vllm`).
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wind.config.models import InferenceConfig
from wind.config.sampling import Backend, SamplingConfig
from wind.errors import ConfigError, InputError
from wind.models import load_tokenizer, policy_positions, stop_token_ids, vocabulary_size
from wind.prompt_parts import sampled_prompts
from wind.quantities import IS_TRUNCATED
from wind.stages import (
    Expected,
    Place,
    Progress,
    Role,
    RowsOf,
    Shard,
    Side,
    SideOf,
    Spec,
    Stage,
    WorkerKind,
    no_function,
)
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model, label
from wind.store.schemas import (
    PROMPT,
    PROMPT_ID,
    SAMPLE,
    SAMPLE_INDEX,
    TOKENS,
    Column,
    Declaration,
    ForeignKey,
)

# seed + sample_index stays an int64, and vLLM adds the index itself
SEED_BITS: Final = 62


DATASET = Declaration(
    row="one response sampled by a named policy",
    columns=(
        PROMPT_ID,
        SAMPLE_INDEX,
        Column("policy", pa.string(), "fingerprint of the model that sampled it"),
        Column("response", pa.string(), "text without special tokens"),
        Column("response_token_ids", TOKENS, "includes the stop token when finish_reason is stop"),
        Column(
            "logp_sampler",
            pa.float64(),
            "nats <= 0, sum over response_token_ids at temperature 1, as the sampler saw it",
        ),
        Column("finish_reason", pa.string(), "stop | length"),
        Column("seed", pa.int64(), "of this response's own random generator"),
    ),
    key=SAMPLE,
    foreign_keys=(ForeignKey(PROMPT, "prompts"), ForeignKey(("policy",), "policy")),
)


class GenerationsSpec(Spec):
    """The settings that determine the responses.

    `sampling.backend` names the sampler; "auto" would hide it from the key.
    """

    policy: Model
    prompts: Dataset
    split: Literal["train", "eval"]
    sampling: SamplingConfig
    inference: InferenceConfig
    seed: int
    iteration: int
    # of the train split, one of which is sampled; the eval split has none
    parts: int = 1


@dataclass(frozen=True)
class Request:
    """One prompt to answer N times.

    Sample i draws from `seed + i`.
    """

    prompt_id: str
    prompt_token_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Sample:
    """One response; `token_ids` ends with the stop token if `finish_reason` is stop."""

    token_ids: list[int]
    # nats, sum over token_ids under the unfiltered policy at temperature 1
    logp: float
    finish_reason: Literal["stop", "length"]


class Sampler(Protocol):
    """An engine with one policy loaded."""

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Progress,
        ahead: Sequence[Sequence[Request]] = (),
    ) -> list[list[Sample]]:
        """Return N samples of each request, in the order of `requests`.

        `ahead` holds the requests of the calls that come next, which the engine may begin so that
        it never runs empty; they change nothing in the samples of this one. Raises InputError
        naming a prompt whose logits are not finite.
        """
        ...


def request_seed(seed: int, iteration: int, split: str, prompt_id: str) -> int:
    """Return the seed of a prompt's first sample, below 2**62.

    Sample i has this plus i.
    """
    content = hashlib.sha256(f"{seed}/{iteration}/{split}/{prompt_id}".encode()).digest()
    return int.from_bytes(content[:8], "big") >> (64 - SEED_BITS)


def not_finite(request: Request) -> InputError:
    """Return the error for logits that are NaN or infinite."""
    return InputError(
        f"the policy's logits are not finite on prompt {request.prompt_id}: "
        "it diverged in training or overflows its dtype"
    )


def shards(spec: GenerationsSpec, store: Store) -> int:
    """Return the number of shards of `shard_prompts` prompts.

    Raises InputError if there are no prompts.
    """
    if spec.sampling.backend == "auto":
        raise ConfigError(
            f"sampling.backend is {spec.sampling.backend!r} in a spec: "
            f"name the engine, one of {', '.join(get_args(Backend))}"
        )
    prompts = _prompts(spec, store)
    if not len(prompts) and spec.parts > 1:
        raise InputError(
            f"{label(spec.prompts)} has no {spec.split} prompts for iteration {spec.iteration}: "
            f"lower prompts.parts, which is {spec.parts}, or add prompts"
        )
    if not len(prompts):
        raise InputError(
            f"{label(spec.prompts)} has no {spec.split} prompts: "
            "change prompts.eval_fraction or add prompts"
        )
    return -(-len(prompts) // spec.sampling.shard_prompts)


def compute(
    spec: GenerationsSpec, store: Store, index: int, place: Place, progress: Progress
) -> Shard:
    """Sample the responses of one shard.

    Its prompts are [index * shard_prompts, (index + 1) * shard_prompts) of those sampled, in
    prompt_id order.
    """
    ours = (
        _prompts(spec, store, "prompt_token_ids")
        .sort("prompt_id")
        .select("prompt_id", "prompt_token_ids")
    )
    check_fits(store.path(spec.policy), _of_shard(spec, ours, index), spec.sampling)
    requests, *ahead = (
        _requests(spec, _of_shard(spec, ours, each)) for each in (index, *place.ahead)
    )
    assert spec.sampling.backend != "auto", "refused by `shards`"
    sampler = SAMPLERS[spec.sampling.backend].load(store, spec, place)
    samples_P_N = sampler.sample(requests, spec.sampling, progress, ahead)
    return Shard(_table(spec, requests, samples_P_N, load_tokenizer(store, spec.policy)))


def _of_shard(spec: GenerationsSpec, prompts: pl.DataFrame, index: int) -> pl.DataFrame:
    return prompts.slice(index * spec.sampling.shard_prompts, spec.sampling.shard_prompts)


def _requests(spec: GenerationsSpec, prompts: pl.DataFrame) -> list[Request]:
    return [
        Request(
            prompt_id, token_ids, request_seed(spec.seed, spec.iteration, spec.split, prompt_id)
        )
        for prompt_id, token_ids in prompts.iter_rows()
    ]


def numbers(spec: GenerationsSpec, table: pa.Table) -> dict[str, float]:
    """Return the mean response length, the truncated share and the mean log-probability.

    In tokens, as a share of responses cut at max_new_tokens, and in nats.
    """
    return {
        "mean_response_tokens": pc.mean(
            pc.list_value_length(table.column("response_token_ids"))
        ).as_py(),
        "truncated_share": pl.DataFrame(table.select(["finish_reason"]))
        .select(IS_TRUNCATED.mean())
        .item(),
        "mean_logp_sampler": pc.mean(table.column("logp_sampler")).as_py(),
    }


def response_text(tokenizer: Any, prompt_token_ids: Sequence[int], sample: Sample) -> str:
    """Return the response as text.

    It lacks special tokens and the token that ended it, special or not. It is decoded together with
    its prompt, because SentencePiece drops the leading space of a continuation decoded alone.
    """

    def decoded(token_ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    said = sample.token_ids[:-1] if sample.finish_reason == "stop" else sample.token_ids
    prompt, whole = decoded(prompt_token_ids), decoded([*prompt_token_ids, *said])
    return whole[len(prompt) :] if whole.startswith(prompt) else decoded(said)


def _prompts(spec: GenerationsSpec, store: Store, *columns: str) -> pl.DataFrame:
    """Read prompt_id, split and `columns` of the prompts that are sampled."""
    frame = store.frame(spec.prompts, ["prompt_id", "split", *columns])
    return sampled_prompts(frame, spec.split, spec.seed, spec.iteration, spec.parts)


def check_fits(folder: Path, prompts: pl.DataFrame, sampling: SamplingConfig) -> None:
    """Refuse prompts that the policy cannot read.

    The policy in `folder` may lack positions or embeddings for them. Engines would each report them
    differently. Raises ConfigError for a prompt that is too long with its response, InputError for
    a token id that the policy does not embed.
    """
    positions, vocabulary = policy_positions(folder), vocabulary_size(folder)
    sizes = prompts.select(
        "prompt_id",
        tokens=pl.col("prompt_token_ids").list.len(),
        top=pl.col("prompt_token_ids").list.max(),
    )
    longest = sizes["tokens"].max()
    if (
        positions is not None
        and isinstance(longest, int)
        and longest + sampling.max_new_tokens > positions
    ):
        raise ConfigError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens {sampling.max_new_tokens} "
            f"exceed the policy's {positions} positions: "
            "lower max_new_tokens or prompts.max_prompt_tokens"
        )
    unknown = sizes.filter(pl.col("top") >= vocabulary) if vocabulary is not None else sizes.clear()
    if len(unknown):
        prompt_id, _, token = unknown.row(0)
        raise InputError(
            f"prompt {prompt_id} has token id {token} and the policy embeds {vocabulary}: "
            "its tokenizer has tokens that the model was never resized for; "
            "use the tokenizer that belongs to it"
        )


def _table(
    spec: GenerationsSpec,
    requests: Sequence[Request],
    samples_P_N: Sequence[Sequence[Sample]],
    tokenizer: Any,
) -> pa.Table:
    rows = [
        {
            "prompt_id": request.prompt_id,
            "sample_index": index,
            "policy": spec.policy.fingerprint,
            "response": response_text(tokenizer, request.prompt_token_ids, sample),
            "response_token_ids": sample.token_ids,
            "logp_sampler": sample.logp,
            "finish_reason": sample.finish_reason,
            "seed": request.seed + index,
        }
        for request, samples_N in zip(requests, samples_P_N, strict=True)
        for index, sample in enumerate(samples_N)
    ]
    return pa.Table.from_pylist(rows, schema=DATASET.schema)


def _transformers(store: Store, spec: GenerationsSpec, place: Place) -> Sampler:
    from wind.generations.hf import TransformersSampler
    from wind.models import load_policy

    model = load_policy(store, spec.policy, spec.inference, place.device)
    return TransformersSampler(
        model, stop_token_ids(store.path(spec.policy)), spec.inference.batch_tokens
    )


def _vllm(store: Store, spec: GenerationsSpec, place: Place) -> Sampler:
    from wind.generations.vllm import load

    # Lengths are taken over both splits, so that training and evaluation share one engine.
    lengths = pc.list_value_length(
        store.read(spec.prompts, ["prompt_token_ids"]).column("prompt_token_ids")
    )
    return load(
        store.path(spec.policy),
        spec,
        pc.max(lengths).as_py() + spec.sampling.max_new_tokens,
        place.device,
    )


@dataclass(frozen=True)
class SamplerEntry:
    """How a sampler is loaded, where it runs, when auto takes it."""

    load: Callable[[Store, GenerationsSpec, Place], Sampler]
    # the kind of worker it runs in, whose interpreter `workers.python` may name
    workers: Backend
    # auto takes it on these devices
    auto_devices: tuple[str, ...]
    # auto takes it only if this is installed; None: always is
    package: str | None = None


# in the order in which auto tries them
SAMPLERS: Final[Mapping[Backend, SamplerEntry]] = {
    "vllm": SamplerEntry(_vllm, workers="vllm", auto_devices=("cuda",), package="vllm"),
    "transformers": SamplerEntry(
        _transformers, workers="transformers", auto_devices=("cpu", "cuda")
    ),
}


def auto_backend(device: str, interpreters: Collection[str]) -> Backend:
    """Return the first sampler for `device` that is installed.

    `interpreters` lists the kinds of worker with an interpreter of their own, which is assumed to
    have what they need.
    """
    return next(
        name
        for name, sampler in SAMPLERS.items()
        if device in sampler.auto_devices
        and (
            sampler.package is None
            or sampler.workers in interpreters
            or find_spec(sampler.package) is not None
        )
    )


def _worker(spec: GenerationsSpec) -> WorkerKind:
    backend = spec.sampling.backend
    return "transformers" if backend == "auto" else SAMPLERS[backend].workers


def _side(spec: GenerationsSpec, side_of: SideOf) -> Side:
    """The reference answers held-out prompts once for all iterations, as iteration 0."""
    if spec.split == "train":
        return ""
    return "eval_" if spec.iteration else "reference_"


def _expected(spec: GenerationsSpec, store: Store, rows_of: RowsOf) -> Expected | None:
    if rows_of(spec.prompts) is None:
        return None
    rows = len(_prompts(spec, store)) * spec.sampling.samples_per_prompt
    return Expected(rows, rows * spec.sampling.max_new_tokens)


STAGE: Final[Stage[GenerationsSpec]] = Stage(
    name="generations",
    spec=GenerationsSpec,
    dataset=DATASET,
    dropped=None,
    shards=shards,
    compute=compute,
    numbers=numbers,
    worker=_worker,
    role=Role(
        phase="training",
        sides=("", "eval_", "reference_"),
        side=_side,
        history=("train", "eval"),
        is_timed=True,
        has_drift=True,
        expected=_expected,
        related_parents={},
        function_seconds=no_function,
    ),
)
