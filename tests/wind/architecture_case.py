"""Tiny random models of many architectures, each with a byte-level tokenizer and a chat template of
a given shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

HEADS = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32}
LLAMA = HEADS | {
    "intermediate_size": 48,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # by transformers' model type
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": LLAMA
    | {
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 6,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": LLAMA | {"sliding_window": 6, "query_pre_attn_scalar": 16},
    "mistral": LLAMA | {"sliding_window": 6},
    "phi3": LLAMA,
    "gpt2": OLDER,
    "gpt_neox": HEADS | {"intermediate_size": 48, "max_position_embeddings": 256},
    "opt": HEADS | {"ffn_dim": 48, "max_position_embeddings": 256, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": HEADS | {"alibi": True},
    "olmo2": LLAMA,
    "granite": LLAMA
    | {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
    },
    "cohere": LLAMA | {"logit_scale": 0.3},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "qwen3_moe": LLAMA
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
    "mixtral": LLAMA | {"num_local_experts": 4},
    "gptj": OLDER | {"rotary_dim": 8},
    "gpt_neo": HEADS
    | {
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    }
    | {"max_position_embeddings": 256},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 256},
}
# What vLLM's kernels for CPUs ask of the same models: heads of 32.
WIDE = {
    "hidden_size": 64,
    "head_dim": 32,
    "n_embd": 64,
    "word_embed_proj_dim": 64,
    "query_pre_attn_scalar": 32,
    "rotary_dim": 16,
}
# transformers' eager attention adds Falcon's ALiBi twice, in the mask and to the logits; sdpa, as
# vLLM, once.
ATTENTION = {"falcon": "sdpa"}
EAGER = ("gemma2", "bloom", "mamba", "gptj", "gpt_neo", "mpt")
# A mixture of experts computes padding, too, in one batch with the tokens of each expert.
MIXTURES = ("qwen3_moe", "mixtral")


@dataclass(frozen=True)
class Shape:
    """A chat template, and the special tokens of the tokenizer that it is for."""

    template: str
    special: Sequence[str] = ("<pad>", "<s>", "</s>")
    bos: str | None = "<s>"
    eos: str = "</s>"


TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if "
    "add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPES = {
    "bos first": Shape("{{ bos_token }}" + TURNS),
    "no bos": Shape(TURNS),
    "no bos token": Shape(TURNS, ("<pad>", "</s>"), bos=None),
    "bos is the turn mark": Shape(
        CHATML, ("<pad>", "<|im_start|>", "<|im_end|>"), "<|im_start|>", "<|im_end|>"
    ),
    "bos is eos": Shape(
        "{{ bos_token }}" + TURNS, ("<pad>", "<|endoftext|>"), "<|endoftext|>", "<|endoftext|>"
    ),
    "eos after every turn": Shape(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        ("<pad>", "<|endoftext|>"),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "thinking": Shape(
        "{{ bos_token }}"
        + TURNS
        + "{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}"
    ),
    "date": Shape("{{ bos_token }}Today is {{ strftime_now('%d %B %Y') }}." + TURNS),
}


def tokenizer_of(shape: Shape) -> Any:
    """A byte-level tokenizer with the special tokens and the template of `shape`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*shape.special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in shape.special]
    )
    named = {"bos_token": shape.bos} if shape.bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=shape.eos,
        pad_token="<pad>",
        chat_template=shape.template,
        padding_side="left",
        **named,
    )


def save_model(
    folder: Path, architecture: str, shape: Shape, *, seed: int = 0, is_wide: bool = False
) -> Path:
    """Write a random model of `architecture`, its weights drawn by `seed`, and its tokenizer to
    `folder`.
    """
    tokenizer = tokenizer_of(shape)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields = (
        ARCHITECTURES[architecture]
        | {"vocab_size": len(tokenizer), "initializer_range": 0.25}
        | ids
    )
    if is_wide:
        fields |= {name: size for name, size in WIDE.items() if name in fields}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **fields))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model_of(architecture: str, **changes: Any) -> Any:
    """Return a random model of `architecture`, with sdpa where it computes the same function."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields = ARCHITECTURES[architecture] | {"vocab_size": 64, "initializer_range": 0.25} | ids
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **(fields | changes)),
        attn_implementation="eager" if architecture in EAGER else "sdpa",
    )
    return model.eval()


def eager_logps(
    folder: Path, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> list[float]:
    """The log-probability of each response by a plain eager forward pass over it and its prompt,
    alone and without padding.
    """
    attention = ATTENTION.get(AutoConfig.from_pretrained(folder).model_type, "eager")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32
    )
    model.eval()
    sums = []
    with torch.no_grad():
        for prompt, response in zip(prompts, responses, strict=True):
            logps_T_V = (
                model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
            )
            sums.append(
                sum(
                    float(logps_T_V[len(prompt) - 1 + step, token])
                    for step, token in enumerate(response)
                )
            )
    return sums
