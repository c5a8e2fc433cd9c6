"""Numbers as people and models write them."""

from decimal import Decimal

import pytest

from wind.config.evaluation import EvaluationConfig
from wind.config.rewards import RuleRewardConfig
from wind.errors import InputError
from wind.evaluation import resolve_match
from wind.rewards import resolve_reward
from wind.rewards.functions import Responses, UserFunction
from wind.rewards.gsm8k import exact_match, last_number
from wind.store.datasets import Store

FUNCTION = "wind.rewards.gsm8k:exact_match"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs, and 9 * 2 = $18.", "18"),
        ("The answer is \\boxed{72}.", "72"),
        ("so **1,234,567** in all", "1234567"),
        ("1,2,3", "3"),  # a list, not 123
        ("$1,200.50", "1200.50"),
        ("about £.75", "0.75"),
        ("18.00", "18"),
        ("it lost -5 degrees", "-5"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("x = \N{MINUS SIGN}7", "-7"),
        ("10-7", "7"),  # a difference
        ("(4+6)-7", "7"),
        ("2-hour walks, 3-4 a day", "4"),
        ("150% more", "150"),
        ("The answer is 5", "5"),
        ("5.", "5"),
    ],
)
def test_the_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number at all", "$", "#### -"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


def test_exact_match() -> None:
    gold = "She sells 9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"
    responses = ["... = 18 dollars.", "$18.00", "180", "-18", "eighteen", "18, not 17"]
    assert exact_match([""] * 6, responses, [gold] * 6) == [1, 1, 0, 0, 0, 0]
    assert exact_match([""] * 2, ["70000", "70,000"], ["#### 70,000", "70000"]) == [1, 1]


def test_it_serves_as_reward_and_as_match(store: Store) -> None:
    rule = resolve_reward(store, RuleRewardConfig(kind="rule", function=FUNCTION))
    digest = resolve_match(EvaluationConfig(match=FUNCTION))
    rows = Responses(["ab"], [0], [[{"role": "user", "content": "2+2?"}]], ["4"], ["#### 4"])
    assert rule.source_digest == digest  # type: ignore[union-attr]
    assert UserFunction("reward.function", FUNCTION, digest)(rows)[""]["values"] == [1.0]
    without = Responses(["ab"], [0], [[{"role": "user", "content": "2+2?"}]], ["4"], [None])
    with pytest.raises(
        InputError,
        match=r"the gold answer None has no number after ####: set prompts\.answer_field",
    ):
        UserFunction("reward.function", FUNCTION, digest)(without)
