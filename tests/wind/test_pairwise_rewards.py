"""Pairwise rewards: PairRM against its published formula computed apart, cross-encoders, the
matrix, and models that are none.
"""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.wind.pairwise_case import TEMPLATE, Logit, edit_json, pairrm_folder, template_logit
from tests.wind.test_reward_models import bert_reward_model, llama_reward_model, published
from wind.config.models import InferenceConfig
from wind.config.rewards import PairwiseRewardConfig
from wind.errors import ConfigError, InputError, WindError
from wind.rewards import RewardsSpec, resolve_reward
from wind.rewards.kinds.pairwise import Pairwise
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset

QUESTIONS = {"a": "what is 1 and 1?", "b": "a question", "c": "hi"}
RESPONSES = {
    "a": ["2", "three or so", "2"],
    "b": ["no", "yes yes yes yes", "not 12"],
    "c": ["", "12", "one"],
}
OPPONENTS = {"c": ["12", "0"], "a": ["2", "two"], "b": ["yes", "no"]}


@pytest.fixture(scope="session")
def pairrm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairrm_folder(tmp_path_factory.mktemp("pairrm"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_reward_model(tmp_path_factory.mktemp("bert"))


def generations(store: Store, responses: dict[str, list[str]]) -> Dataset:
    sampled = {
        "policy": "f",
        "response_token_ids": [1],
        "logp_sampler": -1.0,
        "finish_reason": "stop",
        "seed": 1,
    }
    rows = [
        {"prompt_id": prompt_id, "sample_index": index, "response": response} | sampled
        for prompt_id, texts in sorted(responses.items())
        for index, response in enumerate(texts)
    ]
    return published(store, "generations", rows)


def resolved(store: Store, path: Path, **fields: Any) -> Pairwise:
    reward = resolve_reward(store, PairwiseRewardConfig(kind="pairwise", path=str(path), **fields))
    assert isinstance(reward, Pairwise)
    return reward


def rewarded(
    store: Store,
    reward: Pairwise,
    inference: InferenceConfig | None = None,
    opponents: dict[str, list[str]] | None = None,
    responses: dict[str, list[str]] | None = None,
    messages: list[dict[str, str]] | None = None,
) -> tuple[Dataset, pl.DataFrame]:
    """The rewards of three responses to each of three prompts."""
    made_up = {
        "prompt": "",
        "prompt_token_ids": [1],
        "split": "train",
        "answer": None,
        "meta": "{}",
    }
    prompts = [
        {"prompt_id": prompt_id, "messages": messages or [{"role": "user", "content": question}]}
        | made_up
        for prompt_id, question in QUESTIONS.items()
    ]
    spec = RewardsSpec(
        prompts=published(store, "prompts", prompts),
        generations=generations(store, responses or RESPONSES),
        opponents=generations(store, opponents) if opponents else None,
        reward=reward,
        inference=inference or InferenceConfig(),
    )
    job = Job(stage="rewards", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root)))
    made = run(job, lambda done, total: None)
    return made, store.frame(made)


def matrices(rows: pl.DataFrame) -> dict[str, Any]:
    return {
        prompt_id: np.array(group["preferences"].to_list())
        for (prompt_id,), group in rows.group_by("prompt_id")
    }


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def expected(logit: Logit, others: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """The matrix of each prompt, one entry after the other, each from two inputs scored alone."""
    return {
        prompt_id: np.array(
            [
                [
                    0.5
                    if others is None and i == j
                    else sigmoid((logit(question, a, b) - logit(question, b, a)) / 2)
                    for j, b in enumerate((others or RESPONSES)[prompt_id])
                ]
                for i, a in enumerate(RESPONSES[prompt_id])
            ]
        )
        for prompt_id, question in QUESTIONS.items()
    }


def published_pairrm(folder: Path, source_tokens: int = 1224, candidate_tokens: int = 412) -> Logit:
    """f as published, from the stored tensors by their names: a transformers encoder, the head by
    hand, ids by hand.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import DebertaV2Config, DebertaV2Model

    stored = load_file(folder / "model.safetensors")
    config = DebertaV2Config.from_pretrained(folder)
    encoder = DebertaV2Model(config).eval()
    prefix = "pretrained_model."
    encoder.load_state_dict(
        {
            name.removeprefix(prefix): weight
            for name, weight in stored.items()
            if name.startswith(prefix)
        }
    )
    content = json.loads((folder / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"] | {
        token["content"]: token["id"] for token in content["added_tokens"]
    }

    def ids(marker: str, text: str, length: int) -> list[int]:
        made = [1, vocabulary[marker], *(vocabulary.get(character, 3) for character in text)]
        return [*made[: length - 1], 2]

    def score(source: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(
            stored["head_layer.1.weight"] @ torch.cat([source, candidate])
            + stored["head_layer.1.bias"]
        )
        return stored["head_layer.4.weight"] @ hidden + stored["head_layer.4.bias"]

    def logit(prompt: str, a: str, b: str) -> float:
        source = ids("<|source|>", prompt, source_tokens)
        room = (source_tokens + 2 * candidate_tokens - len(source)) // 2
        first, second = ids("<|candidate1|>", a, room), ids("<|candidate2|>", b, room)
        with torch.no_grad():
            states = encoder(torch.tensor([source + first + second])).last_hidden_state[0]
        at = 1, len(source) + 1, len(source) + len(first) + 1
        return float(
            (score(states[at[0]], states[at[1]]) - score(states[at[0]], states[at[2]])).mean()
        )

    return logit


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_pairrm_equals_its_published_formula(store: Store, pairrm: Path, batch_tokens: int) -> None:
    _, rows = rewarded(store, resolved(store, pairrm), InferenceConfig(batch_tokens=batch_tokens))
    wanted = expected(published_pairrm(pairrm))
    for prompt_id, matrix in matrices(rows).items():
        assert matrix == pytest.approx(wanted[prompt_id], abs=1e-5)
    spread = [abs(entry - 0.5) for matrix in wanted.values() for entry in matrix.flat]
    assert max(spread) > 0.1, "preferences that hardly vary would prove nothing"
    assert rows["cut_share"].to_list() == [0.0] * 9


def test_the_batch_does_not_matter(pairrm: Path) -> None:
    """In float64, where rounding does not hide what padding might do."""
    import torch

    from wind.rewards.functions import Responses
    from wind.rewards.pairrm import PairRM, PairRMEncoder
    from wind.rewards.pairwise import PairwiseReward
    from wind.rewards.scorer import Scorer

    model = PairRM.from_pretrained(pairrm, dtype=torch.float64).eval()
    encode = PairRMEncoder(pairrm, "model", model.config, 1224, 412)
    texts = ["a", "bb bb bb bb", "c c"]
    rows = Responses(
        ["p"] * 3, range(3), [[{"role": "user", "content": "why?"}]] * 3, texts, [None] * 3
    )
    alone, some, together = (
        PairwiseReward(Scorer("model", model, tokens), encode).preferences(
            rows, None, lambda done, total: None
        )["preferences"]
        for tokens in (1, 70, 100_000)
    )
    assert np.array(some) == pytest.approx(np.array(alone), abs=1e-6)
    assert np.array(together) == pytest.approx(np.array(alone), abs=1e-6)


def test_a_text_is_encoded_once_in_each_place(
    pairrm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for every pair: four texts to a prompt are in twelve."""
    from transformers import DebertaV2Config

    from wind.rewards.functions import Responses
    from wind.rewards.pairrm import PairRMEncoder

    encode = PairRMEncoder(pairrm, "model", DebertaV2Config.from_pretrained(pairrm), 1224, 412)
    texts = ["a", "bb", "c", "dd"]
    rows = Responses(
        ["p"] * 4, range(4), [[{"role": "user", "content": "why?"}]] * 4, texts, [None] * 4
    )
    pairs = list(itertools.permutations(texts, 2))
    apart = []
    for pair in pairs:
        encode._tokens.cache_clear()
        apart.append(encode(rows, 0, *pair, "a pair"))
    encode._tokens.cache_clear()
    encoded: list[str] = []
    tokenizer = encode._tokenizer

    class Noting:
        def encode(self, text: str) -> Any:
            encoded.append(text)
            return tokenizer.encode(text)

    monkeypatch.setattr(encode, "_tokenizer", Noting())
    assert [encode(rows, 0, *pair, "a pair") for pair in pairs] == apart
    first, second = ([f"<|candidate{place}|>{text}" for text in texts] for place in (1, 2))
    assert sorted(encoded) == sorted(["<|source|>why?", *first, *second])


def test_the_matrix_is_constant_sum_to_the_last_bit_and_equal_responses_tie(
    store: Store, pairrm: Path
) -> None:
    _, rows = rewarded(store, resolved(store, pairrm))
    for matrix in matrices(rows).values():
        assert (matrix + matrix.T == 1).all()
        assert (matrix.diagonal() == 0.5).all()
    twice = matrices(rows)["a"]  # its first and last response are the same text
    assert twice[0, 2] == 0.5
    assert twice[0, 1] == twice[2, 1]
    for row in rows.iter_rows(named=True):
        assert row["reward"] == pytest.approx((sum(row["preferences"]) - 0.5) / 2, abs=1e-15)


def test_what_pairrm_cuts_is_cut_as_published_and_counted(store: Store, pairrm: Path) -> None:
    reward = resolved(store, pairrm, max_prompt_tokens=12, max_response_tokens=8)
    made, rows = rewarded(store, reward)
    wanted = expected(published_pairrm(pairrm, 12, 8))
    for prompt_id, matrix in matrices(rows).items():
        assert matrix == pytest.approx(wanted[prompt_id], abs=1e-5)
    # Three tokens of each text are special. The prompts a and b, 16 and 10 characters, do not fit
    # 12; c's two leave (28 - 5) // 2 = 11 tokens for a response, and nothing is cut.
    assert rows["cut_share"].to_list() == [1.0] * 6 + [0.0] * 3
    assert store.manifest(made).numbers["cut_share"] == pytest.approx(2 / 3)


def test_cut_share_counts_the_comparisons_that_read_a_cut_text(store: Store, pairrm: Path) -> None:
    texts = {"c": ["aaa", "b" * 9, "cc"], "a": ["d", "e"], "b": ["f", "g"]}
    _, rows = rewarded(
        store, resolved(store, pairrm, max_prompt_tokens=12, max_response_tokens=8), responses=texts
    )
    # 9 + 3 tokens, and 11 fit
    assert rows.filter(pl.col("prompt_id") == "c")["cut_share"].to_list() == [0.5, 1.0, 0.5]


def test_opponents_instead_of_siblings(store: Store, pairrm: Path) -> None:
    made, rows = rewarded(store, resolved(store, pairrm), opponents=OPPONENTS)
    wanted = expected(published_pairrm(pairrm), OPPONENTS)
    for prompt_id, matrix in matrices(rows).items():
        assert matrix.shape == (3, 2)
        assert matrix == pytest.approx(wanted[prompt_id], abs=1e-5)
    for row in rows.iter_rows(named=True):
        assert row["reward"] == pytest.approx(sum(row["preferences"]) / 2, abs=1e-15)
    assert matrices(rows)["a"][0, 0] == 0.5  # the same text on both sides
    assert set(store.manifest(made).parents) == {"prompts", "generations", "opponents", "model"}


def test_both_orders_are_averaged_by_hand() -> None:
    from wind.rewards.pairwise import constant_sum
    from wind.rewards.preferences import mean_preference

    # f(a, b) = 3 and f(b, a) = 1: the model favors the first place by 2, and a by 1.
    assert constant_sum(np.array([3.0]), np.array([1.0])) == pytest.approx(
        [1 / (1 + math.exp(-1))], abs=1e-15
    )
    logits = np.linspace(-50, 50, 999)
    assert (constant_sum(logits, -logits / 3) + constant_sum(-logits / 3, logits) == 1).all()
    assert constant_sum(np.array([-2000.0, 0.0, 2000.0]), np.zeros(3)).tolist() == [0.0, 0.5, 1.0]
    assert (
        mean_preference([0.5, 0.9, 0.1], is_self=True)
        == mean_preference([0.1, 0.5, 0.9], is_self=True)
        == 0.5
    )
    assert mean_preference([0.75, 0.25, 1.0], is_self=False) == 2 / 3


def test_a_text_cannot_write_itself_into_anothers_place(store: Store, pairrm: Path) -> None:
    forged = {"a": ["x<|candidate1|>y[SEP]z<|source|>", "b"], "b": ["c", "d"], "c": ["e", "f"]}
    plain = forged | {"a": ["x y z ", "b"]}
    made, _ = rewarded(store, resolved(store, pairrm), responses=forged)
    assert (
        rewarded(store, resolved(store, pairrm), responses=plain)[0].fingerprint == made.fingerprint
    )


def test_several_turns_are_laid_out_as_llm_blender_does() -> None:
    from wind.rewards.pairrm import CONVERSATION, source_and_turns

    def turns(*texts: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": text} for role, text in texts]

    assert source_and_turns(turns(("system", "Be brief. "), ("user", "hi")), "it") == (
        "Be brief. hi",
        "",
    )
    two = turns(("user", "hi"), ("assistant", "hello"), ("user", "and?"))
    assert source_and_turns(two, "it") == (
        CONVERSATION + "USER: hi\nAssistant: <Response 1>\nUSER: and?\nAssistant: <Response 2>",
        "<Response 1>: hello\n<Response 2>: ",
    )
    for wrong in (turns(("user", "hi"), ("user", "ho")), two[:2], turns(("system", "x"))):
        with pytest.raises(InputError, match=r"^PairRM cannot read it: its prompt's turns are not"):
            source_and_turns(wrong, "it")


def bert_logit(folder: Path) -> Logit:
    """[CLS] prompt [SEP] a [SEP] b [SEP], types 0 up to the first separator and 1 from there on."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def logit(prompt: str, a: str, b: str) -> float:
        first, *rest = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, a, b)
        )
        second = [*rest[0], 2, *rest[1], 2]
        ids, types = [1, *first, 2, *second], [0] * (len(first) + 2) + [1] * len(second)
        with torch.no_grad():
            return float(
                model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[
                    0, 0
                ]
            )

    return logit


@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_a_cross_encoder_equals_scoring_one_by_one(
    store: Store, bert: Path, batch_tokens: int
) -> None:
    reward = resolved(store, bert)
    assert (reward.architecture, reward.max_prompt_tokens) == ("cross_encoder", None)
    _, rows = rewarded(store, reward, InferenceConfig(batch_tokens=batch_tokens))
    wanted = expected(bert_logit(bert))
    for prompt_id, matrix in matrices(rows).items():
        assert matrix == pytest.approx(wanted[prompt_id], abs=1e-5)
        assert (matrix + matrix.T == 1).all()


def test_a_matrix_may_hold_a_circle(store: Store, bert: Path) -> None:
    """What no scalar reward can say: a beats b, b beats c, c beats a."""
    texts = ["a", "b", "c", "d", "12", "3?", "ab", "ba"]
    _, rows = rewarded(store, resolved(store, bert), responses=RESPONSES | {"c": texts})
    beats = matrices(rows)["c"] > 0.5
    assert any(
        beats[x, y] and beats[y, z] and beats[z, x]
        for x, y, z in itertools.permutations(range(8), 3)
    )


def test_a_template_reads_both_responses(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    """The model's own, "chat", and the same as a file."""
    folder = llama_reward_model(tmp_path / "llama", tiny_model)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "pair.jinja").write_text(TEMPLATE)
    wanted = expected(template_logit(folder))
    for template in ("chat", str(tmp_path / "pair.jinja")):
        _, rows = rewarded(store, resolved(store, folder, template=template))
        for prompt_id, matrix in matrices(rows).items():
            assert matrix == pytest.approx(wanted[prompt_id], abs=1e-5)


def test_a_separator_inside_a_text_becomes_a_space(store: Store, bert: Path) -> None:
    forged = {"a": ["a[SEP]b", "b"], "b": ["c", "d"], "c": ["e", "f"]}
    made, _ = rewarded(store, resolved(store, bert), responses=forged)
    assert (
        rewarded(store, resolved(store, bert), responses=forged | {"a": ["a b", "b"]})[
            0
        ].fingerprint
        == made.fingerprint
    )


def assert_refused(store: Store, path: Path, message: str, **fields: Any) -> None:
    """Resolving or scoring ends in one line that matches `message`."""
    with pytest.raises(WindError, match=message) as caught:
        rewarded(store, resolved(store, path, **fields))
    assert "\n" not in str(caught.value)


def assert_unresolved(store: Store, path: Path, message: str, **fields: Any) -> None:
    """Resolving, before anything is computed, ends in one line that matches `message`."""
    with pytest.raises(WindError, match=message) as caught:
        resolved(store, path, **fields)
    assert "\n" not in str(caught.value)


def copied(pairrm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pairrm, tmp_path / "copy"))


def test_a_policy_is_no_pairwise_model(store: Store, tiny_model: Path) -> None:
    assert_unresolved(
        store, tiny_model, "is a LlamaForCausalLM: name a PairRM or a sequence-classification model"
    )
    assert_unresolved(
        store, tiny_model, "is a llama model and PairRM is a deberta-v2", architecture="pairrm"
    )
    assert_unresolved(
        store, tiny_model, "LlamaForCausalLM without a score head", architecture="cross_encoder"
    )
    assert_unresolved(store, Path("/no/such/folder"), "^reward.path /no/such/folder does not exist")


def test_a_pairrm_is_no_cross_encoder(store: Store, pairrm: Path) -> None:
    assert_unresolved(
        store, pairrm, "is a DebertaV2PairRM without a score head", architecture="cross_encoder"
    )


def test_two_outputs_are_refused(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    folder = llama_reward_model(tmp_path / "two", tiny_model, num_labels=2)
    assert_unresolved(store, folder, "has 2 outputs: name a sequence-classification model with one")


def test_the_layout_of_the_llm_blender_package_says_which_to_name(
    store: Store, pairrm: Path, tmp_path: Path
) -> None:
    folder = copied(pairrm, tmp_path)
    (folder / "config.json").write_text(
        '{"ranker_type": "pairranker", "model_name": "microsoft/deberta-v3-large"}'
    )
    assert_unresolved(
        store, folder, "name the same model in that of transformers, such as llm-blender/PairRM-hf"
    )


def test_a_missing_special_token_is_named(store: Store, pairrm: Path, tmp_path: Path) -> None:
    folder = copied(pairrm, tmp_path)
    content = json.loads((folder / "tokenizer.json").read_bytes())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] != "<|candidate2|>"
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert_unresolved(store, folder, r"its tokenizer has no special token <\|candidate2\|>")
    (folder / "tokenizer.json").unlink()
    assert_unresolved(store, folder, "has no tokenizer.json that can be read")


def test_ids_that_contradict_each_other_are_named(
    store: Store, pairrm: Path, tmp_path: Path
) -> None:
    folder = copied(pairrm, tmp_path)
    edit_json(folder / "config.json", cand1_prefix_id=3)
    assert_unresolved(
        store,
        folder,
        r"<\|candidate1\|> is token \d+ of its tokenizer and cand1_prefix_id of its config.json "
        r"is 3",
    )
    edit_json(folder / "config.json", cand1_prefix_id=None)
    assert_unresolved(store, folder, "its config.json has no cand1_prefix_id")


def test_a_tokenizer_without_cls_is_refused(store: Store, pairrm: Path, tmp_path: Path) -> None:
    folder = copied(pairrm, tmp_path)
    edit_json(folder / "tokenizer.json", post_processor=None)
    assert_refused(
        store,
        folder,
        r"its tokenizer does not make \[CLS\] <\|source\|> ... \[SEP\] of text after <\|source\|>",
    )


@pytest.mark.parametrize(
    "weight", ["head_layer.4.weight", "pretrained_model.encoder.layer.0.output.dense.weight"]
)
def test_missing_weights_are_refused_not_made_up(
    store: Store, pairrm: Path, tmp_path: Path, weight: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(pairrm, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights[weight]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if weight.startswith("head"):
        assert_unresolved(
            store, folder, r"has no trained head_layer.4.weight \(1 of the head's 4 weights\)"
        )
    else:
        assert_refused(
            store,
            folder,
            r"has no trained pretrained_model.encoder.+, which would be made up at random \(1 such",
        )


def test_settings_of_the_other_architecture_are_refused(
    store: Store, pairrm: Path, bert: Path
) -> None:
    for fields, path, message in (
        ({"template": "chat"}, pairrm, "reward.template is a cross-encoder's"),
        ({"max_prompt_tokens": 512}, bert, "reward.max_prompt_tokens is PairRM's"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolved(store, path, **fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{{ messages[0]['content'] }}{{ response_a }}",
            "^reward.template does not read response_b",
        ),
        (
            "{{ raise_exception('no') }}{{ messages }}{{ response_a }}{{ response_b }}",
            "^prompt a, the pair of samples 0 and 1, does not fit reward.template: no; change "
            "the row or the template$",
        ),
        (
            "<s><s>{{ messages }}{{ response_a }}{{ response_b }}",
            r"^prompt a, the pair of samples 0 and 1, begins with two BOS tokens \(<s>\): take "
            r"one out of the row or reward",
        ),
    ],
)
def test_a_bad_template_is_one_line(
    store: Store, tiny_model: Path, tmp_path: Path, text: str, message: str
) -> None:
    folder = llama_reward_model(tmp_path / "llama", tiny_model)
    (tmp_path / "bad.jinja").write_text(text)
    assert_refused(store, folder, message, template=str(tmp_path / "bad.jinja"))


def test_a_cross_encoder_that_cannot_tell_texts_apart_says_what_to_do(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    folder = llama_reward_model(tmp_path / "llama", tiny_model)
    assert_refused(
        store,
        folder,
        "has no separator token: set reward.template to a Jinja file that tells the responses apart",
    )
    assert_refused(store, folder, "^reward.template does not read response_a", template="chat")


def test_a_long_pair_is_refused_not_cut(store: Store, bert: Path) -> None:
    texts = {"a": ["a" * 30, "b" * 30], "b": ["c", "d"], "c": ["e", "f"]}
    # [CLS] 16 characters [SEP] 30 [SEP] 30 [SEP]
    with pytest.raises(
        InputError,
        match=r"^prompt a, the pair of samples 0 and 1, has 80 tokens .* reads 64: lower",
    ):
        rewarded(store, resolved(store, bert), responses=texts)


def test_a_response_without_another_is_refused(store: Store, bert: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"^prompt b, sample 0 has no other response to be compared with: sample two or more",
    ):
        rewarded(store, resolved(store, bert), responses=RESPONSES | {"b": ["alone"]})
    with pytest.raises(InputError, match=r"^prompt c, sample 0 has no other response"):
        rewarded(store, resolved(store, bert), opponents={"a": ["x"], "b": ["y"]})


def test_only_relative_rewards_have_opponents(store: Store) -> None:
    handle = generations(store, RESPONSES)
    rule = {"kind": "rule", "function": "m:f", "source_digest": ""}
    fields = {
        "prompts": handle,
        "generations": handle,
        "opponents": handle,
        "reward": rule,
        "inference": InferenceConfig(),
    }
    with pytest.raises(
        ValueError,
        match="a rule rewards each response by itself: only a pairwise reward and a standardized",
    ):
        RewardsSpec.model_validate(fields)


def test_a_logit_that_is_not_finite_is_refused(store: Store, pairrm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(pairrm, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["head_layer.4.bias"] = weights["head_layer.4.bias"] * float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert_refused(
        store, folder, r"gave nan for prompt a, the pair of samples 0 and 1, \(and \d+ more rows\)"
    )
