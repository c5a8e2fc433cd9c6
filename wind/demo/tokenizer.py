"""The demo's two tokenizers: bytes plus a few special tokens.

Any text can be encoded and comes back unchanged. Policy and reward model have vocabularies and chat
templates of their own, as published models do: the policy writes digit by digit, the reward model
reads up to three digits as one token. Both templates begin with BOS, and encoding plain text adds
none: a rendered prompt has exactly one.
"""

from itertools import product
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

POLICY_SPECIALS: Final = (
    "<|pad|>",
    "<|bos|>",
    "<|eos|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
POLICY_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
REWARD_SPECIALS: Final = ("[PAD]", "[BOS]", "[EOS]", "[ASKED]", "[ANSWERED]")
REWARD_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ('[ANSWERED]' if message['role'] == 'assistant' else '[ASKED]') + message['content'] }}"
    "{% endfor %}{{ eos_token }}"
)


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and chat roles.

    An assistant turn ends with `<|end|>`, a text with `<|eos|>`.
    """
    return _fast_tokenizer(
        POLICY_SPECIALS, [], POLICY_TEMPLATE, pad="<|pad|>", bos="<|bos|>", eos="<|end|>"
    )


def reward_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, numbers and two roles.

    The reward is read at the closing `[EOS]`.
    """
    pairs = [(first, second) for first in "0123456789" for second in "0123456789"]
    merges = pairs + [
        (first + second, third) for (first, second), third in product(pairs, "0123456789")
    ]
    return _fast_tokenizer(
        REWARD_SPECIALS, merges, REWARD_TEMPLATE, pad="[PAD]", bos="[BOS]", eos="[EOS]"
    )


def _fast_tokenizer(
    specials: tuple[str, ...],
    merges: list[tuple[str, str]],
    template: str,
    *,
    pad: str,
    bos: str,
    eos: str,
) -> PreTrainedTokenizerFast:
    # sorted, since the order decides the ids
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet, *(left + right for left, right in merges)]
    backend = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    )
    numbers = pre_tokenizers.Split(Regex(r"\d{1,3}"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [numbers, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=template,
        model_max_length=128,
    )
