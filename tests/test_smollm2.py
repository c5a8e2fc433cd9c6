"""The second recipe: what its reward gives to responses judged by hand, and prompts that are what
the code writes.
"""

import json
from pathlib import Path

import pytest

from configs.smollm2 import INSTRUCTIONS, is_about, obeyed, reward, rows

ROOT = Path(__file__).parents[1]
VOLCANO = "What is a volcano?"


def judged(name: str, response: str) -> tuple[float, float]:
    prompt = [f"{VOLCANO} {INSTRUCTIONS[name].sentence}"]
    return reward(prompt, [response], [name])[0], obeyed(prompt, [response], [name])[0]


@pytest.mark.parametrize(
    ("name", "response", "nearness"),
    [
        ("lower_case", "a volcano is a mountain", 1),
        ("lower_case", "A volcano is hot.", 3 / 4),
        ("no_commas", "A volcano is a mountain.", 1),
        ("no_commas", "A volcano, a mountain.", 3 / 4),
        ("at_most_fifteen_words", "volcano " * 15, 1),
        ("at_most_fifteen_words", "volcano " * 20, 3 / 4),
        ("at_least_twenty_words", "volcano " * 20, 1),
        ("at_least_twenty_words", "volcano " * 5, 1 / 4),
        ("one_sentence", "A volcano is 3.5 km high.", 1),
        ("one_sentence", "A volcano. It is high", 1 / 2),
        ("two_sentences", "A volcano. It is high!", 1),
        ("two_sentences", "A volcano.", 1 / 2),
        ("numbered_list", "1. Volcano\n2) Lava", 1),
        ("numbered_list", "1. Volcano", 1 / 2),
        ("starts_with_the", "The volcano", 1),
        ("starts_with_the", "A volcano", 0),
        ("because", "A volcano erupts because of heat.", 1),
        ("because", "A volcano erupts.", 0),
        ("ends_with_question", "A volcano. Have you seen one?", 1),
        ("ends_with_question", "A volcano? Yes.", 1 / 2),
        ("ends_with_exclamation", "A volcano!", 1),
        ("ends_with_exclamation", "A volcano! Yes", 1 / 2),
        ("json", '{"volcano": 1}', 1),
        ("json", "{volcano}", 2 / 3),
        ("lower_case", "", 0),  # of nothing at all nothing is asked
        ("no_commas", "a mountain", 0),  # nor is it about a volcano
        ("no_commas", "Volcanic rock", 1),
    ],
)
def test_nearness_by_hand(name: str, response: str, nearness: float) -> None:
    assert judged(name, response) == pytest.approx((nearness, float(nearness == 1)))


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize(
    "response",
    ["", " \n", "1. \n2. ", "?", "!", "{}", "the answer because", "yes " * 30, "What is it?"],
)
def test_a_response_about_nothing_earns_nothing(name: str, response: str) -> None:
    assert judged(name, response) == (0, 0)


def test_json_nested_too_deeply_to_be_read_is_no_json_object() -> None:
    assert judged("json", '{"volcano":' * 20_000 + "}") == pytest.approx((2 / 3, 0))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["prompt"])
def test_a_question_has_a_subject_and_more_than_its_template(row: dict[str, str]) -> None:
    question = row["prompt"].removesuffix(INSTRUCTIONS[row["instruction"]].sentence)
    assert is_about(question, question)
    assert not is_about(
        question,
        "What is the capital of work, and how do you tell me more about it with one good tip?",
    )


def test_an_instruction_that_is_not_the_prompt_s_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set prompts\.answer_field to instruction"):
        reward([f"{VOLCANO} {INSTRUCTIONS['json'].sentence}"], ["{}"], ["because"])


def test_the_prompts_are_what_the_code_writes() -> None:
    lines = (ROOT / "configs" / "smollm2.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows()
    assert len(lines) == len({json.loads(line)["prompt"] for line in lines}) == 216
