r"""Mathematical answers: what is equal, what is not, and what must cost no more than itself."""

import os
from typing import Any

import pytest

from wind.code.functions import source_digest
from wind.config.evaluation import EvaluationConfig
from wind.config.models import InferenceConfig
from wind.config.rewards import MathRewardConfig, RuleRewardConfig
from wind.errors import InputError
from wind.evaluation import resolve_match
from wind.rewards import mathematics, resolve_reward
from wind.rewards.functions import Responses, UserFunction
from wind.store.datasets import Store

MATCH = "wind.rewards.mathematics:equivalence"


def rows(responses: list[str], answers: list[str | None]) -> Responses:
    count = len(responses)
    asked = [[{"role": "user", "content": "?"}]] * count
    return Responses(["p"] * count, list(range(count)), asked, responses, answers)


def judged(store: Store, *pairs: tuple[str, str | None]) -> dict[str, list[float]]:
    """The columns for pairs of a response and a gold answer."""
    reward: Any = resolve_reward(store, MathRewardConfig(kind="math"))
    judge = reward.judge(store, InferenceConfig(), "cpu", None)
    responses, answers = [list(each) for each in zip(*pairs, strict=True)]
    columns = judge(rows(responses, answers), None, lambda done, total: None)
    return {name: column.tolist() for name, column in columns.items()}


EQUAL = [
    ("The answer is 72", "72"),
    (r"so it is $\frac{1}{2}$", "0.5"),
    ("3/2", "1.5"),
    (r"\boxed{1+x^2}", "x^2+1"),
    (r"\boxed{\sqrt 2}", r"\sqrt{2}"),
    (r"\boxed{(1,2)}", "(1,2)"),
    (r"\boxed{\text{east}}", "east"),
    ("1200.00", "1,200"),
    ("$18.00", "9 * 2 = <<9*2=18>>18\n#### 18"),
    (r"\boxed{x = 3}", "$x=3$"),
]
UNEQUAL = [
    ("The answer is 72", "-72"),
    (r"\boxed{4}, though 3 is right", "3"),
    (r"\boxed{(2,1)}", "(1,2)"),
    (r"\boxed{\text{west}}", "east"),
    (r"\boxed{x^2-1}", "x^2+1"),
]


def test_answers_are_compared_as_mathematics(store: Store) -> None:
    made = judged(store, *EQUAL, *UNEQUAL)
    assert made["reward"] == [1] * len(EQUAL) + [0] * len(UNEQUAL)
    assert made["unparsed"] == [0] * (len(EQUAL) + len(UNEQUAL))


def test_a_response_without_an_answer_is_counted(store: Store) -> None:
    made = judged(store, ("I do not know.", "3"), (r"\boxed{3", "3"), ("", "3"), ("3", "3"))
    assert made == {"reward": [0, 0, 0, 1], "unparsed": [1, 1, 1, 0]}


@pytest.mark.slow
def test_an_expression_without_end_costs_itself_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python computes such a power in one step, during which no signal handler runs."""
    monkeypatch.setattr(mathematics, "SECONDS", 1.0)
    responses = [
        "3",
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{3}",
        r"\boxed{(x+1)^{100000}}",
        r"\boxed{" + "(" * 20000 + "3" + ")" * 20000 + "}",
        "the answer is 3",
    ]
    made = mathematics.verdicts([""] * 6, responses, ["3"] * 6)
    assert made == {"reward": [1, 0, 1, 0, 0, 1], "unparsed": [0, 1, 0, 1, 1, 0]}


def test_an_expression_that_fills_the_memory_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(text: str) -> list[object]:
        return [text] if "3" in text else [bytearray(8 << 30)]

    monkeypatch.setattr(mathematics, "_parsed", fill)
    made = mathematics.verdicts([""] * 3, ["3", "x", "3"], ["3"] * 3)
    assert made["unparsed"] == [0, 1, 0]


def test_a_process_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(response: str, answer: str | None) -> int:
        raise OSError(response)

    monkeypatch.setattr(mathematics, "_verdict", fail)
    with pytest.raises(RuntimeError, match="a process that compares answers failed"):
        mathematics.verdicts([""], ["3"], ["3"])


def test_a_process_that_is_killed_costs_its_response(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(response: str, answer: str | None) -> int:
        if response == "die":
            os.kill(os.getpid(), 9)
        return mathematics.RIGHT

    monkeypatch.setattr(mathematics, "_verdict", die)
    made = mathematics.verdicts([""] * 4, ["die", "3", "die", "die"], ["3"] * 4)
    assert made == {"reward": [0, 1, 0, 0], "unparsed": [1, 0, 1, 1]}


def test_a_prompt_without_gold_answer_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"^prompt p, sample 1 has no gold answer.*answer_field"):
        judged(store, ("3", "3"), ("3", None))
    with pytest.raises(InputError, match=r"the gold answer '' is no mathematics: set prompts\."):
        judged(store, ("3", "3"), ("3", ""))


def test_it_serves_as_reward_and_as_match(store: Store) -> None:
    rule = resolve_reward(store, RuleRewardConfig(kind="rule", function=MATCH))
    digest = resolve_match(EvaluationConfig(match=MATCH))
    assert rule.source_digest == digest == source_digest("reward.function", MATCH)  # type: ignore[union-attr]
    match = UserFunction("evaluation.match", MATCH, digest)
    assert match(rows(["1/2", "2"], ["0.5", "3"]))[""]["values"] == [1.0, 0.0]


def test_faults_can_be_planted(store: Store) -> None:
    reward: Any = resolve_reward(
        store, MathRewardConfig.model_validate({"kind": "math", "corruption": {"bias": 0.25}})
    )
    judge = reward.judge(store, InferenceConfig(), "cpu", None)
    made = judge(rows(["3", "44"], ["3", "3"]), None, lambda done, total: None)
    assert made["reward"].tolist() == [1.25, 0.5]
    assert made["unparsed"].tolist() == [0, 0]
