"""Sampling by hand-made distributions, against a plain loop without cache or batch, and as a stage
in a store.
"""

import hashlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from wind.code.packages import PACKAGES
from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.sampling import SAMPLER_PACKAGES, Backend, SamplingConfig
from wind.errors import ConfigError, InputError
from wind.generations import (
    SAMPLERS,
    GenerationsSpec,
    Request,
    Sample,
    auto_backend,
    request_seed,
    response_text,
)
from wind.generations.hf import Part, TransformersSampler, batched, draw, filtered_weights, uniforms
from wind.models import import_policy
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset, Model
from wind.store.schemas import declared

ROOT = Path(__file__).parents[2]


def prompts(store: Store, token_ids: Sequence[Sequence[int]], splits: Sequence[str]) -> Dataset:
    rows = [
        {
            "prompt_id": f"{row:032x}",
            "prompt": "",
            "messages": [],
            "prompt_token_ids": ids,
            "split": split,
            "answer": None,
            "meta": "{}",
        }
        for row, (ids, split) in enumerate(zip(token_ids, splits, strict=True))
    ]
    with store.partial("prompts", "test") as partial:
        partial.write(0, pa.Table.from_pylist(rows, schema=declared("prompts").schema))
        return partial.publish(1, parents={}, computed_by={}, numbers={}, provenance={})


PROMPTS = [[1, 5], [1, 6, 7, 8, 9, 10], [1, 11, 12], [1, 20, 21, 22], [1, 30]]


def spec(store: Store, policy: Model, **changes: Any) -> GenerationsSpec:
    sampling = {
        "backend": "transformers",
        "samples_per_prompt": 3,
        "max_new_tokens": 12,
        "shard_prompts": 2,
        **changes.pop("sampling", {}),
    }
    fields: dict[str, Any] = {
        "policy": policy,
        "prompts": prompts(store, PROMPTS, ["train", "train", "train", "eval", "train"]),
        "split": "train",
        "sampling": SamplingConfig(**sampling),
        "inference": InferenceConfig(batch_tokens=64),
        "seed": 7,
        "iteration": 1,
    }
    return GenerationsSpec(**{**fields, **changes})


def job(store: Store, spec: GenerationsSpec) -> Job:
    return Job(stage="generations", spec=spec.model_dump(), place=Place(root=str(store.root)))


def rows(store: Store, spec: GenerationsSpec) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = store.read(
        run(job(store, spec), lambda done, total: None)
    ).to_pylist()
    return table


def test_every_backend_of_a_recipe_is_a_sampler() -> None:
    assert SAMPLERS.keys() == set(get_args(Backend)) == SAMPLER_PACKAGES.keys()
    named = [*chain.from_iterable(SAMPLER_PACKAGES.values())]
    assert set(named) <= set(PACKAGES)
    assert {sampler.package for sampler in SAMPLERS.values()} <= {None, *named}


@pytest.mark.parametrize(
    ("device", "interpreters", "is_installed", "expected"),
    [
        ("cpu", [], True, "transformers"),
        ("cpu", ["vllm"], True, "transformers"),
        ("cuda", [], True, "vllm"),
        ("cuda", [], False, "transformers"),
        ("cuda", ["transformers", "training"], False, "transformers"),
        ("cuda", ["vllm"], False, "vllm"),
    ],
)
def test_auto_is_vllm_on_a_gpu_where_its_workers_have_it(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    interpreters: list[str],
    is_installed: bool,
    expected: str,
) -> None:
    asked = []

    def found(name: str) -> str | None:
        asked.append(name)
        return name if is_installed else None

    monkeypatch.setattr("wind.generations.find_spec", found)
    assert auto_backend(device, interpreters) == expected
    assert set(asked) <= {"vllm"}


@pytest.fixture
def policy(store: Store, tiny_model: Path) -> Model:
    return import_policy(store, PolicyConfig(path=str(tiny_model)))


def test_a_seed_depends_on_run_iteration_split_and_prompt_alone() -> None:
    seed = request_seed(7, 1, "train", "ab")
    assert seed == int(hashlib.sha256(b"7/1/train/ab").hexdigest()[:16], 16) // 4
    others = {
        request_seed(8, 1, "train", "ab"),
        request_seed(7, 2, "train", "ab"),
        request_seed(7, 1, "eval", "ab"),
    }
    assert len({seed, request_seed(7, 1, "train", "ac"), *others}) == 5
    assert max(request_seed(seed, 1, "train", "") for seed in range(1000)) < 2**62


def test_an_iteration_samples_the_prompts_of_its_part(store: Store, policy: Model) -> None:
    # By hand from the sha256: with seed 7 and three parts the train prompts 0, 1, 2 are in part 2
    # and prompt 4 in part 0.
    whole = rows(store, spec(store, policy, iteration=3))
    third = rows(store, spec(store, policy, iteration=3, parts=3))
    assert third == whole[:9]  # the same responses as without parts
    assert {row["prompt_id"] for row in rows(store, spec(store, policy, iteration=1, parts=3))} == {
        f"{4:032x}"
    }
    with pytest.raises(
        InputError,
        match=r"no train prompts for iteration 2: lower prompts\.parts, which is 3, or add prompts",
    ):
        rows(store, spec(store, policy, iteration=2, parts=3))


# p = .1 .2 .3 .4, so the CDF is .1 .3 .6 1
LOGITS = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log() + 5


@pytest.mark.parametrize(
    ("uniform", "changes", "token"),
    [
        (0.0, {}, 0),
        (0.099, {}, 0),
        (0.101, {}, 1),
        (0.299, {}, 1),
        (0.301, {}, 2),
        (0.599, {}, 2),
        (0.601, {}, 3),
        (1 - 2**-53, {}, 3),
        (0.428, {"top_k": 2}, 2),  # 3/7 = .4286
        (0.429, {"top_k": 2}, 3),
        (0.0, {"top_p": 0.39}, 3),  # .4 alone reaches .39
        (0.428, {"top_p": 0.41}, 2),  # .4 does not reach .41: the .3 joins it
        (0.0, {"top_p": 0.71}, 1),  # .4 + .3 < .71: .2 joins
        (0.0, {"top_k": 3, "top_p": 0.75}, 2),  # of .4/.9 .3/.9 .2/.9 the first two make .777
        (0.162, {"temperature": 2.0}, 0),  # sqrt(.1) / sum of the square roots = .1626
        (0.163, {"temperature": 2.0}, 1),
        (0.032, {"temperature": 0.5}, 0),  # .01 / .30 = .0333
        (0.034, {"temperature": 0.5}, 1),
    ],
)
def test_a_uniform_number_picks_the_token_of_the_filtered_cdf(
    uniform: float, changes: dict[str, Any], token: int
) -> None:
    tokens, logps, is_finite = draw(
        LOGITS, torch.tensor([uniform], dtype=torch.float64), SamplingConfig(**changes)
    )
    assert tokens.tolist() == [token]
    # of the unfiltered policy
    assert logps.item() == pytest.approx(math.log([0.1, 0.2, 0.3, 0.4][token]), abs=1e-6)
    assert is_finite.all()


def test_a_token_of_no_weight_is_never_drawn_and_nan_is_seen() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf], [math.nan, 0.0, 0.0]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        tokens, _, is_finite = draw(
            logits, torch.tensor([uniform, uniform], dtype=torch.float64), SamplingConfig()
        )
        assert tokens[0] == 1
        assert is_finite.tolist() == [True, False]


def test_ties_at_the_kth_are_kept_and_in_the_nucleus_go_to_the_lower_id() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert (filtered_weights(logits, 2, 1.0) > 0).tolist() == [[True, True, True, True]]
    # e / (e + 3) = .475, each other .175: a nucleus of .5 needs one of the three
    assert (filtered_weights(logits, 0, 0.5) > 0).tolist() == [[True, True, False, False]]


def test_uniforms_belong_to_the_seed_alone() -> None:
    together = uniforms([3, 2**62, 5], 4)
    assert np.array_equal(together[1], uniforms([2**62], 9)[0, :4])
    assert len({*together.ravel()}) == 12
    assert together.min() >= 0
    assert together.max() < 1


def test_batches_hold_every_sample_once_within_the_limit() -> None:
    sampling = SamplingConfig(samples_per_prompt=4, max_new_tokens=10)
    assert list(batched([5, 2, 9], sampling, 1000)) == [
        [Part(2, 0, 4), Part(0, 0, 4), Part(1, 0, 4)]
    ]
    # 9 + 10 = 19 tokens a row: 8 rows in 152, so the third prompt opens a batch of its own
    assert list(batched([5, 2, 9], sampling, 152)) == [
        [Part(2, 0, 4), Part(0, 0, 4)],
        [Part(1, 0, 4)],
    ]
    # 3 rows in 57: four samples do not fit, and the second prompt (15 a row, 3 rows) is split too
    assert list(batched([9, 5], sampling, 57))[:2] == [[Part(0, 0, 3)], [Part(0, 3, 4)]]
    alone = list(batched([9, 5], sampling, 1))
    assert [len(parts) for parts in alone] == [1] * 8
    for limit in (1, 40, 57, 90, 152, 500):
        drawn = Counter(
            (part.request, index)
            for parts in batched([9, 5, 7], sampling, limit)
            for part in parts
            for index in range(part.start, part.stop)
        )
        assert drawn == {(request, index): 1 for request in range(3) for index in range(4)}


def naive(
    model: Any, request: Request, index: int, sampling: SamplingConfig, stop: Sequence[int]
) -> tuple[list[int], float, str]:
    """One response, the whole sequence run anew for each token."""
    drawn: list[int] = []
    logp = 0.0
    for uniform in uniforms([request.seed + index], sampling.max_new_tokens)[0]:
        with torch.no_grad():
            logits = model(torch.tensor([[*request.prompt_token_ids, *drawn]])).logits[:, -1]
        token, token_logp, _ = draw(logits, torch.tensor([uniform], dtype=torch.float64), sampling)
        drawn.append(int(token))
        logp += float(token_logp)
        if drawn[-1] in stop:
            return drawn, logp, "stop"
    return drawn, logp, "length"


@pytest.mark.parametrize(
    ("batch_tokens", "changes"),
    [(1, {}), (200, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}), (10000, {})],
)
def test_equals_a_loop_without_cache_batch_or_padding(
    tiny_model: Path, batch_tokens: int, changes: dict[str, Any]
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    sampling = SamplingConfig(samples_per_prompt=4, max_new_tokens=20, **changes)
    # several stop tokens, so that rows end early, are compacted away, and some run to the end
    stop = (2, 9, 17, 30)
    requests = [Request(str(number), ids, 1000 * number) for number, ids in enumerate(PROMPTS)]
    samples_P_N = TransformersSampler(model, stop, batch_tokens).sample(
        requests, sampling, lambda done, total: None
    )
    reasons: Counter[str] = Counter()
    for request, samples in zip(requests, samples_P_N, strict=True):
        for index, sample in enumerate(samples):
            tokens, logp, reason = naive(model, request, index, sampling, stop)
            assert (sample.token_ids, sample.finish_reason) == (tokens, reason)
            assert sample.logp == pytest.approx(logp, abs=1e-4)
            assert not set(sample.token_ids[:-1]) & set(stop)
            reasons[reason] += 1
    assert reasons["stop"] >= 3
    assert reasons["length"] >= 1


def test_frequencies_are_the_models_probabilities(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    draws = 4000
    sampling = SamplingConfig(samples_per_prompt=draws, max_new_tokens=1)
    (samples,) = TransformersSampler(model, (2,), 10**6).sample(
        [Request("a", [1, 7, 9], 5)], sampling, lambda done, total: None
    )
    probabilities = model(torch.tensor([[1, 7, 9]])).logits[0, -1].softmax(-1).tolist()
    counts = Counter(sample.token_ids[0] for sample in samples)
    for token, probability in enumerate(probabilities):
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token] - draws * probability) < 4.5 * deviation + 1, token


def test_the_stage_writes_n_rows_per_prompt_of_the_split(store: Store, policy: Model) -> None:
    table = rows(store, spec(store, policy))
    train = [0, 1, 2, 4]
    assert [(row["prompt_id"], row["sample_index"]) for row in table] == [
        (f"{row:032x}", n) for row in train for n in range(3)
    ]
    for row in table:
        assert row["policy"] == policy.fingerprint
        assert row["seed"] == request_seed(7, 1, "train", row["prompt_id"]) + row["sample_index"]
        assert 1 <= len(row["response_token_ids"]) <= 12
        assert (row["finish_reason"] == "stop") == (row["response_token_ids"][-1] == 2)
        assert row["finish_reason"] == "stop" or len(row["response_token_ids"]) == 12
        assert row["logp_sampler"] < 0
    assert len({tuple(row["response_token_ids"]) for row in table}) == len(table)


def test_responses_do_not_hang_on_shards_or_batches(store: Store, policy: Model) -> None:
    expected = rows(store, spec(store, policy))
    for sampling, batch_tokens in (({"shard_prompts": 1}, 64), ({"shard_prompts": 64}, 100000)):
        again = rows(
            store,
            spec(
                store,
                policy,
                sampling=sampling,
                inference=InferenceConfig(batch_tokens=batch_tokens),
            ),
        )
        for ours, theirs in zip(again, expected, strict=True):
            assert ours.pop("logp_sampler") == pytest.approx(theirs["logp_sampler"], abs=1e-4)
            assert ours == {key: value for key, value in theirs.items() if key != "logp_sampler"}


def test_the_same_spec_gives_the_same_fingerprint_and_another_iteration_another(
    store: Store, policy: Model, tmp_path: Path
) -> None:
    first = run(job(store, spec(store, policy)), lambda done, total: None)
    elsewhere = Store(tmp_path / "elsewhere")
    import_policy(elsewhere, PolicyConfig(path=str(store.path(policy))))
    assert run(job(elsewhere, spec(elsewhere, policy)), lambda done, total: None) == first
    assert run(job(store, spec(store, policy, iteration=2)), lambda done, total: None) != first
    numbers = store.manifest(first).numbers
    table = store.read(first).to_pylist()
    assert numbers["mean_response_tokens"] == pytest.approx(
        np.mean([len(row["response_token_ids"]) for row in table])
    )
    assert numbers["truncated_share"] == pytest.approx(
        np.mean([row["finish_reason"] == "length" for row in table])
    )
    assert numbers["mean_logp_sampler"] == pytest.approx(
        np.mean([row["logp_sampler"] for row in table])
    )
    assert store.manifest(first).parents.keys() == {"policy", "prompts"}


def test_progress_ends_at_its_total(store: Store, policy: Model) -> None:
    told: list[tuple[int, int]] = []
    run(
        job(store, spec(store, policy, sampling={"shard_prompts": 64})),
        lambda done, total: told.append((done, total)),
    )
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)


def test_what_cannot_be_sampled_is_said_in_one_line(store: Store, policy: Model) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.backend is 'auto'"):
        rows(store, spec(store, policy, sampling={"backend": "auto"}))
    with pytest.raises(
        ConfigError,
        match=r"a prompt of 6 tokens and sampling\.max_new_tokens 123 exceed the policy's 128 "
        r"positions",
    ):
        rows(store, spec(store, policy, sampling={"max_new_tokens": 123}))
    with pytest.raises(InputError, match="has no eval prompts"):
        rows(store, spec(store, policy, split="eval", prompts=prompts(store, [[1, 5]], ["train"])))


def test_a_token_that_the_policy_does_not_embed_is_named(store: Store, policy: Model) -> None:
    strange = prompts(store, [[1, 5], [1, 7, 48, 3]], ["train", "train"])
    with pytest.raises(
        InputError,
        match=rf"prompt {1:032x} has token id 48 and the policy embeds 47: its tokenizer has tokens",
    ):
        rows(store, spec(store, policy, prompts=strange))


def test_a_diverged_policy_is_reported_with_the_prompt(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.embed_tokens.weight[11] = math.nan  # in the prompt of row 2 only
    model.save_pretrained(tmp_path / "diverged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "diverged" / name).write_bytes((tiny_model / name).read_bytes())
    diverged = import_policy(store, PolicyConfig(path=str(tmp_path / "diverged")))
    with pytest.raises(InputError, match=f"not finite on prompt {2:032x}"):
        rows(store, spec(store, diverged, sampling={"max_new_tokens": 1}))


def test_text_keeps_the_space_that_sentencepiece_drops() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, "▁b": 4, "c": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    assert fast.decode([4, 5]) == "bc"
    assert response_text(fast, [1, 3], Sample([4, 5, 2], -1.0, "stop")) == " bc"
    assert response_text(fast, [1, 3], Sample([5, 4], -1.0, "length")) == "c b"
    assert response_text(fast, [1, 3], Sample([2], -1.0, "stop")) == ""


def test_a_stop_token_that_is_not_special_stays_out_of_the_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2, "|": 3}, unk_token="?"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert response_text(fast, [1], Sample([2, 3, 1, 3], -1.0, "stop")) == "b|a"
    assert response_text(fast, [1], Sample([2, 3, 1, 3], -1.0, "length")) == "b|a|"


def test_text_falls_back_where_the_prompt_is_no_prefix() -> None:
    class Merging:
        """Decodes a prompt differently once something follows."""

        def decode(
            self,
            token_ids: list[int],
            skip_special_tokens: bool,
            clean_up_tokenization_spaces: bool,
        ) -> str:
            return {(1,): "a", (1, 2): "â!", (2,): "!"}[tuple(token_ids)]

    assert response_text(Merging(), [1], Sample([2], -1.0, "length")) == "!"


@pytest.mark.slow
def test_runs_by_hand_from_a_spec(store: Store, policy: Model, tmp_path: Path) -> None:
    work = job(store, spec(store, policy))
    handle = run(work, lambda done, total: None)
    (tmp_path / "spec.json").write_text(json.dumps({"stage": work.stage, "spec": work.spec}))
    command = [
        sys.executable,
        "-m",
        "wind.stages",
        str(tmp_path / "spec.json"),
        "--root",
        str(store.root),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert Dataset.model_validate_json(result.stdout) == handle
