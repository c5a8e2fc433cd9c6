"""How a language model behind an endpoint judges responses.

Pairwise, every two responses to a prompt are asked about in both orders. An answer gives the first
one 1, 0 or, for a tie, 1/2, and the preference is the mean of both orders,

    P(a > b) = (v(a, b) + 1 - v(b, a)) / 2,   P(b > a) = 1 - P(a > b),   P(a > a) = 1/2,

which is exactly constant-sum (MATH 0.1, convention 1). A judge that favors the first place whatever
is there gives 1/2: its bias vanishes. Asked in one order only, which is drawn for each pair, the
bias vanishes on average. Equal responses tie without being asked about.

An answer that cannot be parsed is asked for again, with another seed. A comparison that stays
without a verdict counts as a tie, and in the column `unparsed_share`; a score has no neutral value,
so a response that stays without one ends the stage.

Every answer is kept in the store (`wind.store.verdicts`), so that nothing is asked twice.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from wind.config.endpoints import Connection
from wind.endpoints import connection_to, count
from wind.endpoints.client import Endpoint
from wind.endpoints.limits import Budget, SpentError
from wind.errors import InputError, StageError, shown
from wind.fingerprints import digest
from wind.rewards.functions import Floats, Responses
from wind.rewards.kinds.judge import LLMJudge, model_identity
from wind.rewards.preferences import by_prompt, mean_preference, refuse_alone
from wind.rewards.questions import Questions, parsed_score, parsed_verdict, restriction
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.verdicts import Answer, Verdicts, verdicts_of

MILLION: Final = 1_000_000
# tokens that an endpoint's chat template adds to a question, at most
TEMPLATE_TOKENS: Final = 512


@dataclass(frozen=True)
class Question:
    """A question, and the first row that asks it."""

    text: str
    where: str


# What is asked about one response and another: the text of each question, and whether it has the
# first response first.
Comparison = list[tuple[str, bool]]


class JudgeReward:
    """A judge that compares or scores responses."""

    def __init__(self, store: Store, judge: LLMJudge) -> None:
        self._store = store
        self._judge = judge
        self._questions = Questions(judge.template, judge.scale)

    def preferences(
        self, rows: Responses, opponents: Responses | None, progress: Progress
    ) -> dict[str, list[Any]]:
        """Compare `rows` with their siblings, or with `opponents` if given.

        Returns the columns reward, preferences, cut_share and unparsed_share; `progress` counts
        distinct questions. Raises InputError for a response with nothing to compare it with.
        """
        refuse_alone(rows, opponents)
        is_self = opponents is None
        others = rows if opponents is None else opponents
        ours, theirs = by_prompt(rows), by_prompt(others)
        questions: dict[str, Question] = {}
        compared = {
            (row, other): self._comparison(rows, row, others, other, questions)
            for prompt_id, indexes in ours.items()
            for row in indexes
            for other in theirs[prompt_id]
        }
        verdicts = self._verdicts(questions, parsed_verdict, progress)
        columns: dict[str, list[Any]] = {
            name: [None] * len(rows)
            for name in ("reward", "preferences", "cut_share", "unparsed_share")
        }
        for prompt_id, indexes in ours.items():
            for row in indexes:
                comparisons = [compared[row, other] for other in theirs[prompt_id]]
                preferences_M = [_preference(each, verdicts) for each in comparisons]
                unparsed = [verdicts[text] is None for each in comparisons for text, _ in each]
                asked = (len(comparisons) - is_self) * len(self._orders())
                columns["preferences"][row] = preferences_M
                columns["reward"][row] = mean_preference(preferences_M, is_self=is_self)
                columns["cut_share"][row] = 0.0
                columns["unparsed_share"][row] = sum(unparsed) / asked
        return columns

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return the score of each row.

        Raises InputError for a response whose score cannot be parsed.
        """
        questions: dict[str, Question] = {}
        texts = []
        for row in range(len(rows)):
            responses = {"response": rows.responses[row]}
            texts.append(self._asked(rows, row, responses, rows.where(row), questions))
        scale = self._judge.scale
        scores = self._verdicts(questions, lambda text: parsed_score(text, scale), progress)
        return {"reward": np.array([scores[text] for text in texts], dtype=np.float64)}

    def _orders(self) -> tuple[bool, ...]:
        return (True, False) if self._judge.orders == "both" else (True,)

    def _comparison(
        self,
        rows: Responses,
        row: int,
        others: Responses,
        other: int,
        questions: dict[str, Question],
    ) -> Comparison:
        """Add what is to be asked about a pair to `questions`."""
        one, two = rows.responses[row], others.responses[other]
        if one == two:
            return []
        orders = self._orders()
        if len(orders) == 1:
            # The same for the pair seen from the other side.
            drawn = digest([self._judge.seed, list(rows.messages[row]), sorted([one, two])])
            orders = ((one < two) == (int(drawn[:8], 16) % 2 == 0),)
        samples = f"{rows.sample_indexes[row]} and {others.sample_indexes[other]}"
        where = f"prompt {rows.prompt_ids[row]}, the pair of samples {samples}"
        asked = []
        for is_first in orders:
            first, second = (one, two) if is_first else (two, one)
            responses = {"response_a": first, "response_b": second}
            asked.append((self._asked(rows, row, responses, where, questions), is_first))
        return asked

    def _asked(
        self,
        rows: Responses,
        row: int,
        responses: Mapping[str, str],
        where: str,
        questions: dict[str, Question],
    ) -> str:
        text = self._questions(rows.messages[row], rows.answers[row], responses, where)
        questions.setdefault(text, Question(text, where))
        return text

    def _verdicts(
        self,
        questions: Mapping[str, Question],
        parse: Callable[[str], float | None],
        progress: Progress,
    ) -> dict[str, float | None]:
        """Return the verdict on every question, by its text.

        The endpoint is not asked, nor need it be there, if the store knows all answers.
        """
        judge = self._judge
        identity = judge.answers_identity()
        with verdicts_of(self._store, identity, alone=False) as verdicts:
            known = Asking(judge, verdicts, parse).known(questions)
        if len(known) == len(questions):
            count(cached=len(known))
            return known
        connection = connection_to(judge.identity(), f"the judge {judge.model}")
        with verdicts_of(self._store, identity, alone=connection.is_alone()) as verdicts:
            asking = Asking(judge, verdicts, parse)
            known = asking.known(questions)
            count(cached=len(known))
            left = [question for text, question in questions.items() if text not in known]
            for text, verdict in asking.ask(connection, left):
                known[text] = verdict
                progress(len(known), len(questions))
        return known


class Asking:
    """One stage's questions to a judge, and the answers that are kept."""

    def __init__(
        self, judge: LLMJudge, verdicts: Verdicts, parse: Callable[[str], float | None]
    ) -> None:
        self._judge = judge
        self._verdicts = verdicts
        self._parse = parse

    def known(self, questions: Mapping[str, Question]) -> dict[str, float | None]:
        """Return the verdicts that the kept answers give.

        A question whose every attempt is kept and could not be parsed has the verdict None.
        """
        known: dict[str, float | None] = {}
        for text in questions:
            answers = self._kept(text)
            if answers and (verdict := self._verdict(answers[-1])) is not None:
                known[text] = verdict
            elif len(answers) == self._judge.attempts:
                self._refuse_scoreless(questions[text], answers[-1])
                known[text] = None
        return known

    def ask(
        self, connection: Connection, questions: list[Question]
    ) -> Iterator[tuple[str, float | None]]:
        """Yield the text of each question and its verdict, as they come."""
        spent = sum(
            _cost(connection, each.input_tokens, each.output_tokens)
            for each in self._verdicts.answers()
        )
        budget = Budget(connection.max_cost, spent)
        with Endpoint(connection, "reward", budget=budget, vouch=self._vouch) as endpoint:

            def answer(question: Question) -> tuple[str, float | None]:
                return question.text, self._answered(endpoint, connection, question)

            try:
                yield from endpoint.map(answer, questions)
            except SpentError as error:
                raise StageError(
                    f"reward.max_cost holds the judge {self._judge.model} back: {error}; its "
                    f"{len(self._verdicts.answers())} answers are kept: raise reward.max_cost and rerun"
                ) from None

    def _vouch(self, get: Callable[[str], Any]) -> None:
        judge = self._judge
        found = model_identity(get, judge.model, judge.revision)
        if found != judge.endpoint:
            raise StageError(
                f"reward.url: the endpoint serves {found} now, and served {dict(judge.endpoint)} "
                "when this stage was planned: start the run again"
            )

    def _answered(
        self, endpoint: Endpoint, connection: Connection, question: Question
    ) -> float | None:
        answers = self._kept(question.text)
        while not answers or self._verdict(answers[-1]) is None:
            if len(answers) == self._judge.attempts:
                self._refuse_scoreless(question, answers[-1])
                return None
            answers.append(self._asked(endpoint, connection, question, len(answers)))
        return self._verdict(answers[-1])

    def _asked(
        self, endpoint: Endpoint, connection: Connection, question: Question, attempt: int
    ) -> Answer:
        body = self._body(question.text, attempt)
        content = json.dumps(body).encode()
        most = _cost(
            connection,
            len(question.text.encode(errors="replace")) + TEMPLATE_TOKENS,
            self._judge.max_tokens,
        )

        def cost(answer: Any) -> float:
            usage = answer.get("usage") if isinstance(answer, dict) else None
            if not isinstance(usage, dict):
                return most
            return _cost(connection, _tokens(usage, "prompt"), _tokens(usage, "completion"))

        try:
            said = endpoint.post("/chat/completions", content, most=most, cost=cost)
        except InputError as error:
            raise InputError(f"{error}, {question.where}") from None
        answer = self._read(said, question, attempt)
        count(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
        self._verdicts.keep(answer)
        return answer

    def _read(self, said: Any, question: Question, attempt: int) -> Answer:
        """Return the answer in the JSON of a completion."""
        try:
            choice = said["choices"][0]
            text = choice["message"]["content"] or ""
            is_cut = choice.get("finish_reason") == "length"
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise InputError(
                f"reward.url answered {shown(said)}, {question.where}, which is no chat "
                "completion: name an OpenAI-compatible endpoint, such as http://host:8000/v1"
            ) from None
        usage = said.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        answer = Answer(
            question=self._key(question.text, attempt),
            # what JSON can say and no text file can hold
            text=text.encode(errors="replace").decode(),
            verdict=None,
            is_cut=is_cut,
            input_tokens=_tokens(usage, "prompt"),
            output_tokens=_tokens(usage, "completion"),
        )
        return answer.model_copy(update={"verdict": self._verdict(answer)})

    def _verdict(self, answer: Answer) -> float | None:
        # An answer that was cut may have been going on to say more.
        is_whole = not answer.is_cut or self._judge.format != "free"
        return self._parse(answer.text) if is_whole else None

    def _refuse_scoreless(self, question: Question, last: Answer) -> None:
        """Raise InputError if the question without a verdict is one for a score."""
        if self._judge.mode == "scalar":
            why = (
                f"was cut at {self._judge.max_tokens} tokens: raise reward.max_tokens"
                if last.is_cut
                else "holds no score: set reward.format, or correct reward.template"
            )
            raise InputError(
                f"the judge {self._judge.model} gave {question.where} no score in "
                f"{self._judge.attempts} attempts: its last answer, {shown(last.text)}, {why}"
            )

    def _kept(self, text: str) -> list[Answer]:
        """Return the kept answers to a question: of one attempt after the other."""
        found = []
        for attempt in range(self._judge.attempts):
            answer = self._verdicts.find(self._key(text, attempt))
            if answer is None:
                break
            found.append(answer)
            if self._verdict(answer) is not None:
                break
        return found

    def _key(self, text: str, attempt: int) -> str:
        return digest([self._judge.answers_identity(), self._body(text, attempt)])

    def _body(self, text: str, attempt: int) -> dict[str, Any]:
        judge = self._judge
        return {
            "model": judge.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": judge.temperature,
            "max_tokens": judge.max_tokens,
            "seed": question_seed(judge.seed, text, attempt),
            **restriction(judge.format, judge.mode, judge.scale),
        }


def question_seed(seed: int, text: str, attempt: int) -> int:
    """Return the seed of an attempt at a question, below 2**31.

    A server draws the same numbers for the same seed. With one seed for all questions, a judge at a
    temperature above zero would be as lucky with each: a verdict that is given one time in ten
    would be given always or never.
    """
    return int(digest([seed, text, attempt])[:8], 16) >> 1


def _preference(comparison: Comparison, verdicts: Mapping[str, float | None]) -> float:
    """Return the preference for the first of two responses."""
    if not comparison:
        return 0.5
    values = []
    for text, is_first in comparison:
        verdict = verdicts[text]
        value = 0.5 if verdict is None else verdict
        values.append(value if is_first else 1 - value)
    return sum(values) / len(values)


def _cost(connection: Connection, input_tokens: int, output_tokens: int) -> float:
    return (
        input_tokens * connection.input_price + output_tokens * connection.output_price
    ) / MILLION


def _tokens(usage: Mapping[str, Any], kind: str) -> int:
    count = usage.get(f"{kind}_tokens")
    return count if isinstance(count, int) and count >= 0 else 0
