"""How a pairwise reward judges every two responses to a prompt.

A model reads the prompt and two responses and gives f(a, b), the logit that a beats b when a comes
first. Models favor a position, so both orders are scored,

    P(a > b) = sigmoid((f(a, b) - f(b, a)) / 2),   P(b > a) = 1 - P(a > b),   P(a > a) = 1/2,

which is exactly constant-sum (MATH 0.1, convention 1) and, unlike a reward, may be intransitive. If
f is antisymmetric, the logit is f itself. llm-blender averages the same two logits: `compare` in
its mode "[A,B]+[B,A]" returns f(a, b) - f(b, a), twice that mean (llm_blender/blender/blender.py,
`get_scores_from_cmps` in llm_blender/gpt_eval/utils.py, at 2a67366), of which it uses the sign. The
mean keeps the scale that PairRM was trained on, -log sigmoid f.

There are two architectures: PairRM (`wind.rewards.pairrm`), and a *cross-encoder*, a
sequence-classification model with one output. Equal inputs are scored once, so that equal responses
tie exactly and have equal preferences over the others.
"""

from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wind.config.models import InferenceConfig
from wind.errors import InputError
from wind.models import load_tokenizer, make_room
from wind.models.templates import Template
from wind.rewards.classifier import load_classifier, template_of
from wind.rewards.functions import Floats, Responses, asked
from wind.rewards.kinds.pairwise import Pairwise
from wind.rewards.preferences import by_prompt, mean_preference, refuse_alone
from wind.rewards.scorer import Encoded, Scorer, encode_chats, encode_pairs, load_scored
from wind.stages import Progress
from wind.store.datasets import Store
from wind.store.handles import label

Integers = npt.NDArray[np.int64]


class PairEncoder(Protocol):
    """Turns a prompt and two responses into one input of a model."""

    def __call__(
        self, rows: Responses, row: int, response_a: str, response_b: str, where: str
    ) -> tuple[Encoded, bool]:
        """Return the token ids, and whether a text was cut.

        The prompt is that of `row`. `where` names the pair in messages.
        """
        ...


class PairwiseReward:
    """A model that compares two responses, and its encoder.

    It has one output for a prompt and two responses.
    """

    def __init__(self, scorer: Scorer, encode: PairEncoder) -> None:
        self._scorer = scorer
        self._encode = encode

    def preferences(
        self, rows: Responses, opponents: Responses | None, progress: Progress
    ) -> dict[str, list[Any]]:
        """Compare `rows` with their siblings, or with `opponents` if given.

        Returns the columns reward, preferences and cut_share; `progress` counts distinct inputs.
        Raises InputError for a response with nothing to compare it with, a prompt or template that
        cannot be laid out, an input longer than the model's positions, and an output that is not
        finite.
        """
        refuse_alone(rows, opponents)
        is_self = opponents is None
        others = rows if opponents is None else opponents
        ours, theirs = by_prompt(rows), by_prompt(others)
        inputs = _Inputs()
        duels = []
        for prompt_id, indexes in ours.items():
            duels.append(self._duels(rows, indexes, others, theirs[prompt_id], inputs))
        outputs = self._scorer.outputs(inputs.encoded, inputs.prompt_ids, inputs.where, progress)
        columns: dict[str, list[Any]] = {
            name: [None] * len(rows) for name in ("reward", "preferences", "cut_share")
        }
        for indexes, (forward_N_M, backward_N_M, cut_N_M) in zip(ours.values(), duels, strict=True):
            matrix_N_M = constant_sum(outputs[forward_N_M], outputs[backward_N_M])
            for row, preferences_M, cut_M in zip(
                indexes, matrix_N_M.tolist(), cut_N_M, strict=True
            ):
                columns["preferences"][row] = preferences_M
                columns["reward"][row] = mean_preference(preferences_M, is_self=is_self)
                columns["cut_share"][row] = float(cut_M.sum() / (len(preferences_M) - is_self))
        return columns

    def _duels(
        self,
        rows: Responses,
        ours: list[int],
        others: Responses,
        theirs: list[int],
        inputs: "_Inputs",
    ) -> tuple[Integers, Integers, Integers]:
        """Pair one prompt's N responses with M others.

        Returns three arrays [N, M]: the numbers of the inputs (a, b) and (b, a), and 1 where a text
        was cut. A response is not paired with itself: both numbers are 0, which makes its
        preference one half.
        """
        forward, backward, cut = (
            np.zeros((len(ours), len(theirs)), dtype=np.int64) for _ in range(3)
        )
        for i, row in enumerate(ours):
            for j, other in enumerate(theirs):
                if rows is others and j <= i:
                    continue
                samples = f"{rows.sample_indexes[row]} and {others.sample_indexes[other]}"
                where = f"prompt {rows.prompt_ids[row]}, the pair of samples {samples},"
                pair = rows.responses[row], others.responses[other]
                (ab, is_cut), (ba, _) = (
                    self._encode(rows, row, *texts, where) for texts in (pair, pair[::-1])
                )
                forward[i, j], backward[i, j], cut[i, j] = (
                    inputs.number(ab, rows.prompt_ids[row], where),
                    inputs.number(ba, rows.prompt_ids[row], where),
                    is_cut,
                )
                if rows is others:
                    forward[j, i], backward[j, i], cut[j, i] = backward[i, j], forward[i, j], is_cut
        return forward, backward, cut


class _Inputs:
    """Distinct inputs in order of appearance."""

    def __init__(self) -> None:
        self.encoded: list[Encoded] = []
        # of the first pair with that input
        self.prompt_ids: list[str] = []
        self._wheres: list[str] = []
        self._numbers: dict[tuple[int, ...], int] = {}

    def number(self, encoded: Encoded, prompt_id: str, where: str) -> int:
        """Return the number of the input with these token ids.

        A new input is appended.
        """
        key = tuple(encoded["input_ids"] + encoded.get("token_type_ids", []))
        if key not in self._numbers:
            self._numbers[key] = len(self.encoded)
            self.encoded.append(encoded)
            self.prompt_ids.append(prompt_id)
            self._wheres.append(where)
        return self._numbers[key]

    def where(self, number: int) -> str:
        """Return the input's name in messages: its first pair."""
        return self._wheres[number]


class CrossEncoderInputs:
    """Turns a prompt and two responses into a cross-encoder's input.

    Nothing is cut. Without a template, the input is the tokenizer's pair of the user's last message
    and both responses with a separator between: for a BERT, [CLS] prompt [SEP] a [SEP] b [SEP]. A
    separator inside a text becomes a space. A template reads `messages`, `response_a` and
    `response_b`, and is followed exactly (see `wind.models.templates`). Raises InputError for a
    tokenizer without a separator, ConfigError for one without a chat template, and InputError for a
    template that does not read all three.
    """

    def __init__(self, name: str, tokenizer: Any, template: Template | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        if template is None:
            if tokenizer.sep_token is None:
                raise InputError(
                    f"{name} has no separator token: "
                    "set reward.template to a Jinja file that tells the responses apart"
                )
            return
        unread = [
            variable
            for variable in ("messages", "response_a", "response_b")
            if variable not in template.text
        ]
        if unread:
            raise InputError(
                f"reward.template does not read {unread[0]}: "
                "a pairwise one reads messages, response_a and response_b"
            )

    def __call__(
        self, rows: Responses, row: int, response_a: str, response_b: str, where: str
    ) -> tuple[Encoded, bool]:
        """Return the token ids, and False: nothing is ever cut.

        Raises InputError for a template that refuses the pair or begins it with two BOS tokens.
        """
        if self._template is None:
            separator = self._tokenizer.sep_token
            texts = (
                text.replace(separator, " ")
                for text in (asked(rows.messages[row]), response_a, response_b)
            )
            question, first, second = texts
            inputs = encode_pairs(
                self._tokenizer, [question], [first + separator + second], lambda row: where
            )
        else:
            responses = {"response_a": response_a, "response_b": response_b}
            inputs = encode_chats(
                self._template, [rows.conversation(row)], lambda row: where, **responses
            )
        return inputs[0], False


def constant_sum(forward: Floats, backward: Floats) -> Floats:
    """Return P(a > b) from the logits of both orders.

    `forward` is f(a, b) and `backward` f(b, a), of any shape. Swapping the two arguments gives
    exactly 1 - P.
    """
    difference = forward - backward
    # the sigmoid of half the difference, at least 1/2
    likelier = (1 + np.tanh(np.abs(difference) / 4)) / 2
    preferences: Floats = np.where(difference >= 0, likelier, 1 - likelier)
    return preferences


@lru_cache(maxsize=1)
def pairwise_reward(
    root: str, reward: Pairwise, inference: InferenceConfig, device: str
) -> PairwiseReward:
    """Load the reward model on `device`, and keep it loaded.

    It is in the store at `root`, and kept for the next shard. Raises InputError, in one line, if
    the folder does not load, lacks weights or special tokens, or does not have exactly one output.
    """
    store = Store(root)
    name, folder = f"reward model {label(reward.model)}", store.path(reward.model)
    make_room(folder, inference.dtype, device)
    encode: PairEncoder
    if reward.architecture == "pairrm":
        from wind.rewards.pairrm import PairRM, PairRMEncoder

        assert reward.max_prompt_tokens is not None, "resolve_reward sets both lengths of a PairRM"
        assert reward.max_response_tokens is not None
        model = load_scored(folder, name, inference.dtype, PairRM)
        encode = PairRMEncoder(
            folder, name, model.config, reward.max_prompt_tokens, reward.max_response_tokens
        )
    else:
        model = load_classifier(folder, name, inference.dtype)
        tokenizer = load_tokenizer(store, reward.model)
        encode = CrossEncoderInputs(name, tokenizer, template_of(reward, tokenizer, name))
    return PairwiseReward(Scorer(name, model.to(device), inference.batch_tokens), encode)
