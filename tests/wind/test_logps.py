"""Stored log-probabilities against a plain forward pass per row, and against what the sampler saw."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.sampling import SamplingConfig
from wind.errors import DatasetError, InputError
from wind.logps import LogpsSpec, padded
from wind.models import import_policy
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.schemas import declared

PROMPTS = [[1, 5], [1, 6, 7, 8, 9, 10], [1, 11, 12]]


def publish(
    store: Store, name: str, rows: Sequence[dict[str, Any]], shard_rows: int = 100
) -> Dataset:
    with store.partial(name, "test") as partial:
        starts = range(0, len(rows), shard_rows)
        for index, start in enumerate(starts):
            partial.write(
                index,
                pa.Table.from_pylist(
                    list(rows[start : start + shard_rows]), schema=declared(name).schema
                ),
            )
        return partial.publish(len(starts), parents={}, computed_by={}, numbers={}, provenance={})


def prompts(store: Store, token_ids: Sequence[Sequence[int]] = PROMPTS) -> Dataset:
    rest: dict[str, Any] = {
        "prompt": "",
        "messages": [],
        "split": "train",
        "answer": None,
        "meta": "{}",
    }
    return publish(
        store,
        "prompts",
        [
            {"prompt_id": f"{row:032x}", "prompt_token_ids": ids, **rest}
            for row, ids in enumerate(token_ids)
        ],
    )


def generations(store: Store, policy: Model) -> Dataset:
    """The tiny policy's own samples, in shards of two prompts."""
    spec = {
        "policy": policy.model_dump(),
        "prompts": prompts(store).model_dump(),
        "split": "train",
        "sampling": SamplingConfig(
            backend="transformers",
            samples_per_prompt=3,
            max_new_tokens=15,
            shard_prompts=2,
            temperature=0.7,
            top_p=0.9,
        ).model_dump(),
        "inference": InferenceConfig().model_dump(),
        "seed": 0,
        "iteration": 1,
    }
    return run(
        Job(stage="generations", spec=spec, place=Place(root=str(store.root))),
        lambda done, total: None,
    )


def logps(
    store: Store, generations: Dataset, policy: Model, reference: Model, **inference: Any
) -> Dataset:
    spec = LogpsSpec(
        prompts=prompts(store),
        generations=generations,
        policy=policy,
        reference=reference,
        inference=InferenceConfig(**inference),
    )
    return run(
        Job(stage="logps", spec=spec.model_dump(), place=Place(root=str(store.root))),
        lambda done, total: None,
    )


@pytest.fixture
def policy(store: Store, tiny_model: Path) -> Model:
    return import_policy(store, PolicyConfig(path=str(tiny_model)))


def changed(store: Store, tiny_model: Path, folder: Path, factor: float) -> Model:
    """The tiny model with one embedding, of token 11, multiplied."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[11] *= factor
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    return import_policy(store, PolicyConfig(path=str(folder)))


def naive(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    with torch.no_grad():
        logps_T_V = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
    return sum(
        float(logps_T_V[len(prompt) - 1 + step, token]) for step, token in enumerate(response)
    )


def test_equals_a_plain_forward_pass_and_the_sampler(
    store: Store, tiny_model: Path, policy: Model, tmp_path: Path
) -> None:
    reference = changed(store, tiny_model, tmp_path / "reference", -2.0)
    sampled = generations(store, policy)
    drawn = store.read(sampled).to_pylist()
    models = [
        AutoModelForCausalLM.from_pretrained(store.path(model)) for model in (policy, reference)
    ]
    for batch_tokens in (1, 50, 16384):
        scored = logps(store, sampled, policy, reference, batch_tokens=batch_tokens)
        rows = store.read(scored).to_pylist()
        assert [(row["prompt_id"], row["sample_index"]) for row in rows] == [
            (row["prompt_id"], row["sample_index"]) for row in drawn
        ]
        for row, generation in zip(rows, drawn, strict=True):
            sequence = PROMPTS[int(row["prompt_id"], 16)], generation["response_token_ids"]
            assert row["response_tokens"] == len(generation["response_token_ids"])
            assert row["logp_policy"] == pytest.approx(naive(models[0], *sequence), abs=1e-4)
            assert row["logp_reference"] == pytest.approx(naive(models[1], *sequence), abs=1e-4)
            assert row["logp_policy"] == pytest.approx(generation["logp_sampler"], abs=1e-4)
    assert any(abs(row["logp_policy"] - row["logp_reference"]) > 0.1 for row in rows)
    numbers = store.manifest(scored).numbers
    assert numbers["mean_logp_policy"] == pytest.approx(sum(row["logp_policy"] for row in rows) / 9)
    assert numbers["mean_kl_k1"] == pytest.approx(
        sum(row["logp_policy"] - row["logp_reference"] for row in rows) / 9
    )
    # the shards of the generations
    assert [file.rows for file in store.manifest(scored).files] == [6, 3]


def test_a_policy_that_is_its_own_reference_is_scored_once(store: Store, policy: Model) -> None:
    told: list[tuple[int, int]] = []
    spec = LogpsSpec(
        prompts=prompts(store),
        generations=generations(store, policy),
        policy=policy,
        reference=policy,
        inference=InferenceConfig(),
    )
    scored = run(
        Job(stage="logps", spec=spec.model_dump(), place=Place(root=str(store.root))),
        lambda done, total: told.append((done, total)),
    )
    assert all(
        row["logp_policy"] == row["logp_reference"] for row in store.read(scored).to_pylist()
    )
    assert store.manifest(scored).numbers["mean_kl_k1"] == 0
    assert told == [(6, 6), (3, 3)]


def test_the_same_spec_gives_the_same_fingerprint(store: Store, policy: Model) -> None:
    sampled = generations(store, policy)
    assert logps(store, sampled, policy, policy) == logps(store, sampled, policy, policy)


def test_a_diverged_model_is_reported_with_the_prompt(
    store: Store, tiny_model: Path, policy: Model, tmp_path: Path
) -> None:
    diverged = changed(store, tiny_model, tmp_path / "diverged", math.nan)
    rows = [
        {
            "prompt_id": f"{row:032x}",
            "sample_index": 0,
            "policy": policy.fingerprint,
            "response": "",
            "response_token_ids": [6, 2],
            "logp_sampler": -1.0,
            "finish_reason": "stop",
            "seed": 0,
        }
        for row in range(3)
    ]
    with pytest.raises(
        InputError, match=f"gives log-probability nan to a response of prompt {2:032x}"
    ):
        logps(store, publish(store, "generations", rows), policy, diverged)
    strange = [{**rows[0], "prompt_id": "f" * 32}]
    with pytest.raises(DatasetError, match=f"answers prompt {'f' * 32}, which prompts/"):
        logps(store, publish(store, "generations", strange), policy, policy)


def test_masks_tell_prompt_response_and_padding_apart() -> None:
    ids, attention, response = padded([[1, 5], [1, 6, 7]], [[8, 9, 2], [2]])
    assert ids.tolist() == [[1, 5, 8, 9, 2], [1, 6, 7, 2, 0]]
    assert attention.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert response.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]
