"""Answers in chat: MT-Bench's two turns, and AlpacaEval's one.

The policy answers through its tokenizer's chat template, sampled with transformers as the run
samples, once a question. A turn sees the turns before it and the policy's own answers. A judge, if
there is one, sees the same: its score is the value of MT-Bench's `turn_1` and `turn_2`; AlpacaEval's
`win_rate` is its preference over the reference's output, or, of a judge that scores, whether the
answer's reward is higher, ties one half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wind.benchmarks.questions import Question, read_questions
from wind.benchmarks.records import ChatBenchmark
from wind.config.models import InferenceConfig
from wind.config.sampling import SamplingConfig
from wind.config.templates import TODAY
from wind.errors import ConfigError
from wind.generations import Request, request_seed, response_text
from wind.generations.hf import TransformersSampler
from wind.models import load_policy, load_tokenizer, policy_positions, stop_token_ids
from wind.models.templates import Template
from wind.rewards.functions import Responses
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.handles import Model


@dataclass(frozen=True)
class Answer:
    """What the policy answered in one turn."""

    item: str
    turn: int  # from 0
    messages: list[dict[str, str]]  # up to the question of this turn
    response: str
    target: str | None


@dataclass(frozen=True)
class Answering:
    """A policy that answers, and how it samples."""

    store: Store
    policy: Model
    inference: InferenceConfig
    sampling: SamplingConfig
    seed: int
    device: str

    def rows(self, name: str, benchmark: ChatBenchmark, progress: Progress) -> list[dict[str, Any]]:
        """Return the rows of the benchmark called `name`, one per question and turn.

        Raises ConfigError if the policy has no chat template, or no room for a question.
        """
        folder = self.store.path(benchmark.data)
        (file,) = self.store.manifest(benchmark.data).files
        questions = read_questions(benchmark.kind, folder / file.name)[: benchmark.limit]
        answers = self._answers(name, questions, benchmark.max_new_tokens, progress)
        values = self._judged(benchmark, answers, progress)
        is_alpaca = benchmark.kind == "alpaca_eval"
        return [
            {
                "benchmark": name,
                "item": answer.item,
                "metric": "win_rate" if is_alpaca else f"turn_{answer.turn + 1}",
                "value": value,
                "question": answer.messages[-1]["content"],
                "response": answer.response,
                "target": answer.target or "",
            }
            for answer, value in zip(answers, values, strict=True)
        ]

    def _answers(
        self, name: str, questions: Sequence[Question], max_new_tokens: int, progress: Progress
    ) -> list[Answer]:
        tokenizer = load_tokenizer(self.store, self.policy)
        setting = f"evaluation.benchmarks.{name}"
        template = Template(tokenizer, "chat", TODAY, setting=setting, owner="the policy")
        settings = {"samples_per_prompt": 1, "max_new_tokens": max_new_tokens}
        sampling = self.sampling.model_copy(update=settings)
        sampler = self._sampler()
        said: dict[str, list[dict[str, str]]] = {question.item: [] for question in questions}
        answers = []
        for turn in range(max(len(question.turns) for question in questions)):
            asked = [question for question in questions if turn < len(question.turns)]
            for question in asked:
                said[question.item].append({"role": "user", "content": question.turns[turn]})
            texts = template.texts(
                [said[question.item] for question in asked],
                lambda row, asked=asked: f"question {asked[row].item}",  # type: ignore[misc]
                add_generation_prompt=True,
            )
            ids = template.token_ids(texts)["input_ids"]
            self._refuse_too_long(setting, [len(each) for each in ids], max_new_tokens)
            requests = [
                Request(question.item, each, request_seed(self.seed, turn, name, question.item))
                for question, each in zip(asked, ids, strict=True)
            ]
            sampled = sampler.sample(requests, sampling, progress)
            for question, each, (sample,) in zip(asked, ids, sampled, strict=True):
                response = response_text(tokenizer, each, sample)
                messages = list(said[question.item])
                answers.append(
                    Answer(question.item, turn, messages, response, question.targets[turn])
                )
                said[question.item].append({"role": "assistant", "content": response})
        return answers

    def _sampler(self) -> TransformersSampler:
        model = load_policy(self.store, self.policy, self.inference, self.device)
        stop = stop_token_ids(self.store.path(self.policy))
        return TransformersSampler(model, stop, self.inference.batch_tokens)

    def _refuse_too_long(self, setting: str, lengths: Sequence[int], max_new_tokens: int) -> None:
        positions = policy_positions(self.store.path(self.policy))
        if positions is not None and max(lengths) + max_new_tokens > positions:
            raise ConfigError(
                f"{setting}: a conversation of {max(lengths)} tokens and max_new_tokens "
                f"{max_new_tokens} exceed the policy's {positions} positions: lower max_new_tokens"
            )

    def _judged(
        self, benchmark: ChatBenchmark, answers: Sequence[Answer], progress: Progress
    ) -> list[float | None]:
        """Return the value of each answer, None without a judge."""
        if benchmark.judge is None:
            return [None] * len(answers)
        judge = benchmark.judge.judge(self.store, self.inference, self.device, None)
        ours = _responses(answers, [answer.response for answer in answers])
        if benchmark.kind == "mt_bench":
            return [float(score) for score in judge(ours, None, progress)["reward"]]
        theirs = _responses(answers, [answer.target or "" for answer in answers])
        if benchmark.judge.gives_preferences:
            return [
                float(sum(row) / len(row)) for row in _preferences(judge(ours, theirs, progress))
            ]
        rewards = (judge(each, None, progress)["reward"] for each in (ours, theirs))
        return [
            float(our > their) + float(our == their) / 2
            for our, their in zip(*rewards, strict=True)
        ]


def _preferences(judged: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    preferences: Sequence[Sequence[float]] = judged["preferences"]
    return preferences


def _responses(answers: Sequence[Answer], texts: Sequence[str]) -> Responses:
    """Return `texts` as answers to the questions of `answers`."""
    return Responses(
        prompt_ids=[f"{answer.item}.{answer.turn + 1}" for answer in answers],
        sample_indexes=[0] * len(answers),
        messages=[answer.messages for answer in answers],
        responses=list(texts),
        answers=[answer.target for answer in answers],
        conversations=[None] * len(answers),
    )
