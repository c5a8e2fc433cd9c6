"""The demo's task, tokenizers and trainers, and the committed models themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from wind.config.loading import load_config
from wind.demo import make_demo, sums
from wind.demo.policy import encode as encode_policy
from wind.demo.policy import expected_accuracy, pretrain_policy
from wind.demo.reward import encode as encode_reward
from wind.demo.reward import ranking_accuracy, train_reward_model
from wind.demo.tokenizer import policy_tokenizer, reward_tokenizer
from wind.errors import ConfigError, InputError
from wind.prompts import split_of

REPOSITORY = Path(__file__).parents[2]
MODELS = REPOSITORY / "models"
CHAT = [{"role": "user", "content": "27+58="}, {"role": "assistant", "content": "85"}]


@pytest.mark.parametrize(
    "tokenizer", [policy_tokenizer(), reward_tokenizer()], ids=["policy", "reward"]
)
def test_any_text_comes_back_and_only_the_chat_template_adds_bos(tokenizer: Any) -> None:
    for text in ("27+58=", "85", "Größe 12345, déjà vu\n  日本", ""):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.bos_token_id not in ids

    ids = tokenizer.apply_chat_template(CHAT)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in {tokenizer.bos_token_id, tokenizer.eos_token_id}


def test_the_policy_writes_digits_and_the_reward_model_reads_numbers() -> None:
    assert policy_tokenizer().tokenize("27+158=") == ["2", "7", "+", "1", "5", "8", "="]
    assert reward_tokenizer().tokenize("27+158=") == ["27", "+", "158", "="]


def test_encoded_rows_equal_the_chat_template() -> None:
    rows = [sums.Example("27+58=", "85"), sums.Example("99+58=", "157")]
    policy: Any = policy_tokenizer()
    reward: Any = reward_tokenizer()

    ids_B_T, labels_B_T = encode_policy(policy, rows)
    assert ids_B_T[0].tolist() == [
        *policy.apply_chat_template(CHAT)["input_ids"],
        policy.pad_token_id,
    ]
    assert policy.decode(labels_B_T[0][labels_B_T[0] >= 0]) == "85<|end|>"
    assert (
        encode_reward(reward, [("27+58=", "85")])[0].tolist()
        == reward.apply_chat_template(CHAT)["input_ids"]
    )


def test_gold_reward_is_one_for_exactly_the_answer() -> None:
    assert sums.gold_reward(["27+58="] * 4, ["85", " 85\n", "85 apples", ""], ["85"] * 4) == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]
    with pytest.raises(InputError, match=r"27\+58= *'? has no gold answer"):
        sums.gold_reward(["27+58="], ["85"], [None])


def test_prompts_are_distinct_held_out_and_a_function_of_the_seed(tmp_path: Path) -> None:
    assert sums.write_prompts(tmp_path / "a.jsonl", seed=3, count=40) == 40
    sums.write_prompts(tmp_path / "b.jsonl", seed=3, count=40)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()

    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    prompts = {row["prompt"] for row in rows}
    assert len(prompts) == 40
    for row in rows:
        first, second = row["prompt"].removesuffix("=").split("+")
        assert int(first) + int(second) == int(row["answer"])
    assert prompts.isdisjoint(row.prompt for row in sums.corpus(seed=3, size=5000, wrong_share=0.5))
    assert prompts.isdisjoint(
        pair.prompt for pair in sums.preferences(sums.seen(3), seed=3, size=2000, flip_share=0.0)
    )
    with pytest.raises(ConfigError):
        sums.write_prompts(tmp_path / "c.jsonl", count=sums.HELD_OUT + 1)


def test_both_orders_of_a_sum_are_on_one_side_of_the_demos_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipe = load_config("configs/demo.yaml")
    sides: dict[frozenset[str], list[str]] = {}
    for row in map(json.loads, Path(recipe.prompts.source).read_text().splitlines()):
        numbers = frozenset(row["prompt"].removesuffix("=").split("+"))
        side = split_of(row[recipe.prompts.group_field], recipe.seed, recipe.prompts.eval_fraction)
        sides.setdefault(numbers, []).append(side)
    assert sum(map(len, sides.values())) == 768
    assert sum(len(side) == 2 for side in sides.values()) > 50
    assert all(len(set(side)) == 1 for side in sides.values())


@pytest.mark.parametrize("wrong_share", [0.0, 0.75, 1.0])
def test_the_corpus_is_wrong_as_often_as_configured(wrong_share: float) -> None:
    rows = sums.corpus(seed=0, size=4000, wrong_share=wrong_share)
    errors = [sums.error(row.response, _sum(row.prompt)) for row in rows]
    # 4000 draws: three standard deviations of the share are at most 0.024
    assert sum(error > 0 for error in errors) / len(rows) == pytest.approx(wrong_share, abs=0.024)
    assert max(errors) <= max(sums.SLIPS)


def test_raters_prefer_the_nearer_response_except_for_their_slips() -> None:
    for flip_share in (0.0, 0.2):
        pairs = sums.preferences([(27, 58), (99, 12)], seed=1, size=3000, flip_share=flip_share)
        flipped = [
            sums.error(pair.chosen, _sum(pair.prompt))
            > sums.error(pair.rejected, _sum(pair.prompt))
            for pair in pairs
        ]
        assert sum(flipped) / len(pairs) == pytest.approx(flip_share, abs=0.024)
        assert all(
            sums.error(pair.chosen, _sum(pair.prompt))
            != sums.error(pair.rejected, _sum(pair.prompt))
            for pair in pairs
        )


@pytest.mark.slow
def test_the_same_seed_trains_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain_policy(
            tmp_path / "policy" / name, seed=seed, clean_steps=1, noisy_steps=1, batch=4
        )
        train_reward_model(tmp_path / "reward" / name, seed=seed, steps=2, batch=4, pairs=16)
    for kind in ("policy", "reward"):
        a, b, c = ((tmp_path / kind / name / "model.safetensors").read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_the_committed_policy_knows_the_sums_but_mostly_slips() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODELS / "base")
    tokenizer: Any = AutoTokenizer.from_pretrained(MODELS / "base")
    assert tokenizer.get_vocab() == policy_tokenizer().get_vocab()
    stops = GenerationConfig.from_pretrained(MODELS / "base").eos_token_id
    assert stops == tokenizer.convert_tokens_to_ids(["<|end|>", "<|eos|>"])
    assert 0.2 < expected_accuracy(model, tokenizer, sums.held_out(0)[:200]) < 0.4


def test_the_committed_reward_model_prefers_the_sum_to_its_slips() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / "reward")
    tokenizer: Any = AutoTokenizer.from_pretrained(MODELS / "reward")
    assert tokenizer.get_vocab() == reward_tokenizer().get_vocab()
    assert model.config.num_labels == 1
    assert ranking_accuracy(model, tokenizer, sums.slipped(sums.held_out(0)[:100])) > 0.9


def test_the_committed_models_are_small() -> None:
    assert all(path.stat().st_size <= 5_000_000 for path in MODELS.rglob("*") if path.is_file())


def _sum(prompt: str) -> int:
    first, second = prompt.removesuffix("=").split("+")
    return int(first) + int(second)


def test_the_demo_is_two_models_and_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[str, str, int]] = []

    def fake(name: str, accuracy: float) -> Any:
        def make(out: Path, *, seed: int) -> dict[str, float]:
            made.append((name, out.name, seed))
            return {"accuracy": accuracy}

        return make

    monkeypatch.setattr("wind.demo.policy.pretrain_policy", fake("policy", 0.25))
    monkeypatch.setattr("wind.demo.reward.train_reward_model", fake("reward model", 0.75))
    assert make_demo(tmp_path, 3) == {"base_accuracy": 0.25, "reward_accuracy": 0.75}
    assert made == [("policy", "base", 3), ("reward model", "reward", 3)]
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 768
