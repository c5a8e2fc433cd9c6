"""PairRM: architecture, weight layout and input of llm-blender's model (arXiv 2306.02561).

A DeBERTa-v3 encoder reads a prompt and two responses at once,

    [CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> response a [SEP]
    [CLS] <|candidate2|> response b [SEP],

and a head of two layers reads the encoder's last states at the three markers: with s =
head([source; candidate]), one number per task, f(a, b) = mean over tasks of s_1 - s_2. Weights are
named as in llm-blender/PairRM-hf: the encoder's under `pretrained_model.`, the head's
`head_layer.1` and `head_layer.4`. This follows github.com/yuchenlin/LLM-Blender at 2a67366:
`DebertaV2PairRM` (llm_blender/pair_ranker/pairrm.py), `tokenize_pair` of the README,
`CrossCompareCollator` for separators inside texts, `Blender.compare_conversations` for chats of
several turns.

The published weights were not available. On random weights of this layout, inputs and logits
equaled those of the published class and of `tokenize_pair` to the last bit; the tests compute the
formula independently of both. Names, ids and lengths are those of the published files.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel

from wind.errors import InputError
from wind.rewards.folders import MARKERS
from wind.rewards.functions import Responses
from wind.rewards.scorer import Encoded

Messages = Sequence[Mapping[str, str]]

# sic
CONVERSATION = (
    "Finish the following coversation in each i-th turn "
    "by filling in <Response i> with your response."
)


# texts whose token ids are kept: those of the pairs of one prompt come one after the other
KEPT_TEXTS = 1024


class PairRM(DebertaV2PreTrainedModel):  # type: ignore[misc]
    """The network: token ids to f(a, b).

    The published head has dropout, which is inert in a frozen model and left out.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        width = config.hidden_size
        # The keys 1 and 4 are the layers' places among the published head's dropouts, and part of
        # the names of their weights.
        self.head_layer = torch.nn.ModuleDict(
            {
                "1": torch.nn.Linear(2 * width, width),
                "4": torch.nn.Linear(width, getattr(config, "n_tasks", 1)),
            }
        )
        self.markers = [getattr(config, field) for field in MARKERS]
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the embedding table of the encoder."""
        embeddings: torch.nn.Module = self.pretrained_model.get_input_embeddings()
        return embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Return `logits` [B, 1]: f of each row.

        A row of `input_ids` [B, T] has each marker once.
        """
        states_B_T_H = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        rows_B = torch.arange(len(input_ids), device=input_ids.device)
        source_B_H, first_B_H, second_B_H = (
            states_B_T_H[rows_B, (input_ids == marker).int().argmax(dim=1)]
            for marker in self.markers
        )
        difference_B_K = self._scores(source_B_H, first_B_H) - self._scores(source_B_H, second_B_H)
        return SimpleNamespace(logits=difference_B_K.mean(dim=1, keepdim=True))

    def _scores(self, source_B_H: torch.Tensor, candidate_B_H: torch.Tensor) -> torch.Tensor:
        """Return the head's number per task [B, K] for one candidate."""
        hidden_B_H = torch.tanh(
            self.head_layer["1"](torch.cat([source_B_H, candidate_B_H], dim=-1))
        )
        scores_B_K: torch.Tensor = self.head_layer["4"](hidden_B_H)
        return scores_B_K.float()


class PairRMEncoder:
    """Turns a prompt and two responses into PairRM's input.

    The prompt is cut on the right to `max_prompt_tokens`, including its three special tokens; then
    each response to half of what is left of max_prompt_tokens + 2 max_response_tokens, so that a
    short prompt leaves room. Cutting is part of the published model, and is reported. The
    tokenizer's file is read as it is: transformers 5 would rebuild it without its normalizer. A
    text is encoded once in each place it takes, not once for every pair that it is in. Raises
    InputError if the tokenizer does not turn the markers into the tokens of the model's
    config.
    """

    def __init__(
        self, folder: Path, name: str, config: Any, max_prompt_tokens: int, max_response_tokens: int
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_prompt_tokens = max_prompt_tokens
        self._max_tokens = max_prompt_tokens + 2 * max_response_tokens
        for field, marker in MARKERS.items():
            ids = self._tokenizer.encode(f"{marker}a").ids
            if len(ids) < 4 or ids[1] != getattr(config, field):
                raise InputError(
                    f"{name} is no PairRM: its tokenizer does not make "
                    f"[CLS] {marker} ... [SEP] of text after {marker}"
                )
        self._reserved: list[str] = [str(self._tokenizer.id_to_token(ids[-1])), *MARKERS.values()]
        self._tokens = lru_cache(KEPT_TEXTS)(self._encoded)

    def __call__(
        self, rows: Responses, row: int, response_a: str, response_b: str, where: str
    ) -> tuple[Encoded, bool]:
        """Return the token ids, and whether a text was cut.

        Raises InputError for turns that do not alternate.
        """
        source, before = source_and_turns(rows.messages[row], where)
        prompt = self._tokens("source_prefix_id", source)
        prompt_ids = _cut(prompt, self._max_prompt_tokens)
        room = (self._max_tokens - len(prompt_ids)) // 2
        first = self._tokens("cand1_prefix_id", before + response_a)
        second = self._tokens("cand2_prefix_id", before + response_b)
        ids = [*prompt_ids, *_cut(first, room), *_cut(second, room)]
        return {"input_ids": ids}, len(ids) < len(prompt) + len(first) + len(second)

    def _encoded(self, field: str, text: str) -> list[int]:
        """Encode `[CLS] marker text [SEP]`.

        Markers and separators in `text` become spaces. The published model does so for the
        separator. Here markers are replaced too; otherwise a response could write itself into the
        other's place.
        """
        for token in self._reserved:
            text = text.replace(token, " ")
        ids: list[int] = self._tokenizer.encode(MARKERS[field] + text).ids
        return ids


def source_and_turns(messages: Messages, where: str) -> tuple[str, str]:
    """Return PairRM's source, and the text before the response in a candidate.

    A system message goes before the user's words, like llm-blender's instruction. A single user
    message is the source as it is. Several turns use llm-blender's format for conversations, in
    which a candidate holds all assistant turns, numbered: the earlier ones come from the prompt and
    are the same in both. Raises InputError unless user and assistant alternate and the user is
    first and last.
    """
    instruction = "".join(turn["content"] for turn in messages if turn["role"] == "system")
    turns = [turn for turn in messages if turn["role"] != "system"]
    expected = ["user", "assistant"] * (len(turns) // 2) + ["user"]
    if [turn["role"] for turn in turns] != expected:
        raise InputError(
            f"PairRM cannot read {where}: its prompt's turns are not the user's "
            "and the assistant's in turn, the user last"
        )
    if len(turns) == 1:
        return instruction + turns[0]["content"], ""
    asked = [
        f"USER: {turn['content']}\nAssistant: <Response {number}>"
        for number, turn in enumerate(turns[::2], 1)
    ]
    answered = [
        f"<Response {number}>: {turn['content']}\n" for number, turn in enumerate(turns[1::2], 1)
    ]
    return instruction + CONVERSATION + "\n".join(asked), "".join(
        answered
    ) + f"<Response {len(asked)}>: "


def _cut(ids: list[int], length: int) -> list[int]:
    """Cut `ids` on the right to `length`, keeping the separator."""
    return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
