"""Rewards from classifiers: batches against scoring one by one, templates and BOS, and models that
are none.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wind.config.models import InferenceConfig
from wind.config.rewards import ClassifierRewardConfig
from wind.config.templates import TODAY
from wind.errors import WindError
from wind.rewards import RewardsSpec, resolve_reward
from wind.rewards.functions import Responses
from wind.rewards.kinds.classifier import Classifier
from wind.rewards.kinds.pairwise import Pairwise
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset

QUESTIONS = {"a": "1+1=?", "b": "a much longer question about nothing", "c": "hi"}
RESPONSES = {"a": ["2", "three or so"], "b": ["no", "yes yes yes yes"], "c": ["", "12"]}


def published(store: Store, name: str, rows: list[dict[str, Any]]) -> Dataset:
    with store.partial(name, "made") as partial:
        partial.write(0, pl.DataFrame(rows, schema_overrides={"answer": pl.String}).to_arrow())
        spec = {"spec": {"field": "question"}}
        return partial.publish(1, parents={}, computed_by=spec, numbers={}, provenance={})


def job(
    store: Store,
    reward: Classifier | Pairwise,
    inference: InferenceConfig | None = None,
    meta: str = "{}",
) -> Job:
    """The spec of rewarding two responses to each of three prompts with a system message."""
    made_up = {
        "prompt": "",
        "prompt_token_ids": [1],
        "split": "train",
        "answer": None,
        "meta": meta,
    }
    system = {"role": "system", "content": "be brief"}
    prompts = [
        {"prompt_id": prompt_id, "messages": [system, {"role": "user", "content": question}]}
        | made_up
        for prompt_id, question in QUESTIONS.items()
    ]
    sampled = {
        "policy": "f",
        "response_token_ids": [1],
        "logp_sampler": -1.0,
        "finish_reason": "stop",
        "seed": 1,
    }
    generations = [
        {"prompt_id": prompt_id, "sample_index": index, "response": response} | sampled
        for prompt_id, texts in RESPONSES.items()
        for index, response in enumerate(texts)
    ]
    spec = RewardsSpec(
        prompts=published(store, "prompts", prompts),
        generations=published(store, "generations", generations),
        reward=reward,
        inference=inference or InferenceConfig(),
    )
    return Job(
        stage="rewards", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )


def rewarded(
    store: Store, reward: Classifier, inference: InferenceConfig | None = None
) -> pl.DataFrame:
    return store.frame(run(job(store, reward, inference), lambda done, total: None))


CHAT = (
    "{{ bos_token }}{% for m in messages %}<u>{{ m['role'][0] }}:{{ m['content'] }}{% endfor "
    "%}{{ eos_token }}"
)


def llama_reward_model(
    folder: Path, tokenizer_folder: Path, *, pad: int | None = 0, **fields: Any
) -> Path:
    """A random Llama with one output, big weights so that rewards differ, and a chat template
    unlike the policy's.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=fields.pop("positions", 128),
        initializer_range=0.3,
        pad_token_id=pad,
        num_hidden_layers=2,
        **{"num_labels": 1, **shape, **fields},
    )
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def bert_reward_model(folder: Path) -> Path:
    """A random BERT with one output and a tokenizer that joins two texts as [CLS] A [SEP] B [SEP],
    types 0 and 1.
    """
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {
        token: index
        for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij 123?"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        id2label={0: "reward"},
    )
    torch.manual_seed(2)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_reward(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_reward_model(tmp_path_factory.mktemp("llama_reward"), tiny_model)


@pytest.fixture(scope="session")
def bert_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_reward_model(tmp_path_factory.mktemp("bert_reward"))


def resolved(store: Store, path: Path, template: str = "chat") -> Classifier:
    reward = resolve_reward(
        store, ClassifierRewardConfig(kind="classifier", path=str(path), template=template)
    )
    assert isinstance(reward, Classifier)
    return reward


def one_by_one(
    folder: Path, encode: Callable[[Any, str, str], dict[str, list[int]]]
) -> list[float]:
    """The reward of every response, each scored alone and unpadded."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rewards = []
    with torch.no_grad():
        for prompt_id, texts in RESPONSES.items():
            for response in texts:
                inputs = {
                    name: torch.tensor([ids])
                    for name, ids in encode(tokenizer, QUESTIONS[prompt_id], response).items()
                }
                rewards.append(float(model(**inputs).logits[0, 0]))
    return rewards


def ids(tokenizer: Any, text: str) -> dict[str, list[int]]:
    """`text` in characters and written-out special tokens, nothing added."""
    return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}


def llama_chat(tokenizer: Any, question: str, response: str) -> dict[str, list[int]]:
    return ids(tokenizer, f"<s><u>s:be brief<u>u:{question}<u>a:{response}</s>")


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_a_chat_classifier_equals_scoring_one_by_one(
    store: Store, llama_reward: Path, batch_tokens: int
) -> None:
    rewards = rewarded(
        store, resolved(store, llama_reward), InferenceConfig(batch_tokens=batch_tokens)
    )["reward"].to_list()
    assert rewards == pytest.approx(one_by_one(llama_reward, llama_chat), abs=1e-5)
    assert max(rewards) - min(rewards) > 0.1, "a reward that hardly varies would prove nothing"


@pytest.mark.parametrize(
    ("kind", "template"), [("llama", "chat"), ("llama", "none"), ("bert", "none")]
)
def test_the_batch_does_not_matter(
    llama_reward: Path, bert_reward: Path, kind: str, template: str
) -> None:
    """In float64, where rounding does not hide what padding might do."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from wind.models.templates import Template
    from wind.rewards.classifier import ClassifierReward

    folder = {"llama": llama_reward, "bert": bert_reward}[kind]
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = Template(tokenizer, "chat", TODAY)
    alone, some, together = (
        ClassifierReward(
            "model", model, tokenizer, chat if template == "chat" else None, tokens
        ).rewards(responses(), lambda done, total: None)["reward"]
        for tokens in (1, 70, 100_000)
    )
    assert some == pytest.approx(alone, abs=1e-6)
    assert together == pytest.approx(alone, abs=1e-6)


def test_equal_inputs_are_scored_once_and_tie(
    llama_reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of another shape their last bits would differ."""
    from wind.rewards.scorer import Scorer, load_scored

    batches: list[list[list[int]]] = []
    forward = Scorer._forward

    def noted(scorer: Scorer, batch: list[dict[str, list[int]]], *arguments: Any) -> Any:
        batches.append([row["input_ids"] for row in batch])
        # what another batch does to the last bits, made sure of
        return [value + len(batches) * 2.0**-20 for value in forward(scorer, batch, *arguments)]

    monkeypatch.setattr(Scorer, "_forward", noted)
    scorer = Scorer("model", load_scored(llama_reward, "model", "float32"), batch_tokens=8)
    texts = [[1, 6, 7, 2], [1, 9, 2], [1, 6, 7, 2], [1, 6, 8, 2], [1, 6, 7, 2], [1, 9, 2]] * 3
    outputs = scorer.outputs(
        [{"input_ids": ids} for ids in texts],
        ["p"] * len(texts),
        lambda row: f"row {row}",
        lambda done, total: None,
    )
    assert len(batches) > 1
    assert sorted(row for batch in batches for row in batch) == [
        [1, 6, 7, 2],
        [1, 6, 8, 2],
        [1, 9, 2],
    ]
    of_text = {
        tuple(ids): {
            float(output) for output, row in zip(outputs, texts, strict=True) if row == ids
        }
        for ids in texts
    }
    assert [len(values) for values in of_text.values()] == [1, 1, 1]
    assert len(set.union(*of_text.values())) == 3


@pytest.mark.parametrize("pad", [0, 2, None])
@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_a_prompt_is_computed_once(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pad: int | None,
    batch_tokens: int,
) -> None:
    """Against each row alone, in float64: rows that end in the padding token, are read before it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from wind.rewards.scorer import Scorer

    folder = llama_reward_model(tmp_path / "model", tiny_model, pad=pad)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    prompts = [[1, *range(5, 25)], [1, *range(24, 4, -1)]]
    rests = [[6, 2], [2, 2], [9, 10, 11, 2], [6, 7, 8, 9, 2, 2]]
    rows = [prompt + rest for rest in rests for prompt in prompts]
    starts: list[int] = []
    forward = Scorer._forward

    def noted(scorer: Scorer, batch: Any, start: int, past: Any) -> Any:
        starts.append(start)
        return forward(scorer, batch, start, past)

    monkeypatch.setattr(Scorer, "_forward", noted)
    outputs = Scorer("model", model, batch_tokens).outputs(
        [{"input_ids": row} for row in rows], ["a", "b"] * 4, str, lambda done, total: None
    )
    with torch.no_grad():
        alone = [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
    assert outputs.tolist() == pytest.approx(alone, abs=1e-6)
    # Where 2 is padding, a row of it is read at the prompt's last token, which must stay in it. Of
    # four rows of at most 27 tokens, three fit in 100, and the fourth has nothing to share with.
    shared = 20 if pad == 2 else 21
    assert set(starts) == {1: {0}, 100: {0, shared}, 100_000: {shared}}[batch_tokens]


def responses() -> Responses:
    rows = [
        (prompt_id, index, text)
        for prompt_id, texts in RESPONSES.items()
        for index, text in enumerate(texts)
    ]
    return Responses(
        prompt_ids=[prompt_id for prompt_id, _, _ in rows],
        sample_indexes=[index for _, index, _ in rows],
        messages=[[{"role": "user", "content": QUESTIONS[prompt_id]}] for prompt_id, _, _ in rows],
        responses=[text for _, _, text in rows],
        answers=[None] * len(rows),
    )


def test_a_text_pair_is_joined_as_the_tokenizer_joins_two_texts(
    store: Store, bert_reward: Path
) -> None:
    def pair(tokenizer: Any, question: str, response: str) -> dict[str, list[int]]:
        first, second = (ids(tokenizer, text)["input_ids"] for text in (question, response))
        return {
            "input_ids": [1, *first, 2, *second, 2],
            "token_type_ids": [0] * (len(first) + 2) + [1] * (len(second) + 1),
        }

    rewards = rewarded(store, resolved(store, bert_reward, "none"))["reward"].to_list()
    assert rewards == pytest.approx(one_by_one(bert_reward, pair), abs=1e-5)


def test_nothing_is_put_before_a_text_pair(store: Store, llama_reward: Path) -> None:
    rewards = rewarded(store, resolved(store, llama_reward, "none"))["reward"].to_list()
    expected = one_by_one(
        llama_reward, lambda tokenizer, question, response: ids(tokenizer, f"{question}{response}")
    )
    assert rewards == pytest.approx(expected, abs=1e-5)


def test_a_pair_gets_the_tokens_that_its_tokenizer_adds_and_a_chat_none(
    store: Store, llama_reward: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "two_bos"
    shutil.copytree(llama_reward, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for template, text in (
        ("none", "<s>{0}<s>{1}"),
        ("chat", "<s><u>s:be brief<u>u:{0}<u>a:{1}</s>"),
    ):
        rewards = rewarded(store, resolved(store, folder, template))["reward"].to_list()
        expected = one_by_one(
            llama_reward, lambda tokenizer, *row, text=text: ids(tokenizer, text.format(*row))
        )
        assert rewards == pytest.approx(expected, abs=1e-5)


def test_a_jinja_file_replaces_the_template_and_nothing_is_added(
    store: Store, llama_reward: Path, tmp_path: Path
) -> None:
    file = tmp_path / "reward.jinja"
    file.write_text("{{ messages[-2]['content'] }}<a>{{ messages[-1]['content'] }}")
    reward = resolved(store, llama_reward, str(file))
    assert reward.template == file.read_text()
    file.unlink()
    expected = one_by_one(
        llama_reward,
        lambda tokenizer, question, response: ids(tokenizer, f"{question}<a>{response}"),
    )
    assert rewarded(store, reward)["reward"].to_list() == pytest.approx(expected, abs=1e-5)


def test_a_template_is_given_whole_messages_its_arguments_and_a_date(
    store: Store, llama_reward: Path, tmp_path: Path
) -> None:
    file = tmp_path / "reward.jinja"
    file.write_text(
        "{{ messages[0].name }}{{ style }}{{ messages[-1].content }}{{ strftime_now('%d') }}"
    )
    config = ClassifierRewardConfig(
        kind="classifier",
        path=str(llama_reward),
        template=str(file),
        template_arguments={"style": "b"},
        date="2026-01-31",
    )
    reward = resolve_reward(store, config)
    assert isinstance(reward, Classifier)
    meta = json.dumps(
        {
            "question": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"}
            ],
            "prompt": "x",
        }
    )
    handle = run(job(store, reward, meta=meta), lambda done, total: None)
    expected = one_by_one(
        llama_reward, lambda tokenizer, question, response: ids(tokenizer, f"annb{response}31")
    )
    assert store.frame(handle)["reward"].to_list() == pytest.approx(expected, abs=1e-5)


def test_a_model_without_padding_token_reads_each_rows_last_token(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    folder = llama_reward_model(tmp_path / "no_pad", tiny_model, pad=None)
    rewards = rewarded(store, resolved(store, folder))["reward"].to_list()
    assert rewards == pytest.approx(one_by_one(folder, llama_chat), abs=1e-5)


def test_bfloat16_differs_a_little(store: Store, llama_reward: Path) -> None:
    rewards = rewarded(store, resolved(store, llama_reward), InferenceConfig(dtype="bfloat16"))[
        "reward"
    ].to_list()
    exact = one_by_one(llama_reward, llama_chat)
    assert rewards != exact
    assert rewards == pytest.approx(exact, abs=0.2)


def test_the_model_is_a_parent(store: Store, llama_reward: Path) -> None:
    reward = resolved(store, llama_reward)
    handle = run(job(store, reward), lambda done, total: None)
    assert store.manifest(handle).parents["model"] == reward.model


def assert_refused(store: Store, path: Path, message: str, template: str = "chat") -> None:
    """Resolving or scoring ends in one line that matches `message`."""
    with pytest.raises(WindError, match=message) as caught:
        rewarded(store, resolved(store, path, template))
    assert "\n" not in str(caught.value)


def test_a_policy_is_no_reward_model(store: Store, tiny_model: Path) -> None:
    assert_refused(
        store,
        tiny_model,
        "is a LlamaForCausalLM without a score head: name a sequence-classification model",
    )


def test_an_untrained_head_is_refused_not_made_up(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(
        store,
        folder,
        r"has no trained score.weight, which would be made up at random \(1 such weights\)",
    )


def test_two_outputs_are_refused(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    folder = llama_reward_model(tmp_path / "two", tiny_model, num_labels=2)
    assert_refused(store, folder, "has 2 outputs: name a sequence-classification model with one")


def test_a_long_input_is_refused_not_cut(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    folder = llama_reward_model(tmp_path / "short", tiny_model, positions=64)
    # <s> <u> s : be brief, <u> u : 36 characters, <u> a : 15 characters, </s>: 1 + 11 + 39 + 18 + 1
    assert_refused(
        store,
        folder,
        r"prompt b, sample 1 has 70 tokens with its prompt and reward model models/\w+ reads 64: "
        r"lower",
    )


def test_roberta_counts_positions_from_its_padding_index(tmp_path: Path) -> None:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    from wind.rewards.scorer import max_positions

    shape: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "vocab_size": 8,
    }
    roberta = RobertaForSequenceClassification(
        RobertaConfig(max_position_embeddings=34, pad_token_id=1, **shape)
    )
    bert = BertForSequenceClassification(BertConfig(max_position_embeddings=34, **shape))
    assert (max_positions(roberta), max_positions(bert)) == (32, 34)


def test_a_classifier_without_chat_template_says_what_to_do(
    store: Store, bert_reward: Path
) -> None:
    assert_refused(
        store, bert_reward, 'has no chat template: set reward.template to a Jinja file or to "none"'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{{ raise_exception('no system role') }}",
            "^prompt a, sample 0 does not fit reward.template: no system role; change",
        ),
        (
            "{% if messages[-1]['content'] == 'yes yes yes yes' %}{{ 1 // 0 }}{% endif %}{{ "
            "messages }}",
            "^prompt b, sample 1 does not fit reward.template: integer division or modulo by "
            "zero; change the row or the",
        ),
        ("{% for %}", r"^reward.template is not a Jinja template \(line 1: Expected an expression"),
        (
            "<s>{{ '<s>' if messages[-1]['content'] == 'no' }}!",
            r"^prompt b, sample 0 begins with two BOS tokens \(<s>\): take one",
        ),
        (
            "{{ messages[-1]['content'][:2] }}",
            "^prompt c, sample 0 renders to no token at all: check reward.template",
        ),
    ],
)
def test_a_bad_template_is_one_line(
    store: Store, llama_reward: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "bad.jinja").write_text(text)
    assert_refused(store, llama_reward, message, template=str(tmp_path / "bad.jinja"))


def test_paths_that_are_not_there_name_the_rewards_own_setting(
    store: Store, llama_reward: Path
) -> None:
    assert_refused(store, Path("/no/such/folder"), "^reward.path /no/such/folder does not exist")
    assert_refused(
        store,
        llama_reward,
        '^reward.template no.jinja cannot be read: name "chat", "none" or a Jinja file',
        "no.jinja",
    )


def test_a_reward_that_is_not_finite_is_refused(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = llama_reward_model(tmp_path / "broken", tiny_model)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] * float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(
        store,
        folder,
        r"reward model models/\w+ gave nan for prompt a, sample 0 \(and 5 more rows\)",
    )


def test_a_model_handle_is_not_a_path(store: Store, llama_reward: Path) -> None:
    spec = job(store, resolved(store, llama_reward)).spec
    assert str(llama_reward) not in json.dumps(spec)
    assert spec["reward"]["model"]["fingerprint"] == resolved(store, llama_reward).model.fingerprint
