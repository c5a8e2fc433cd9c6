"""What a decoder has and does, by its config.json: weights, cache, arithmetic per token."""

from collections.abc import Mapping
from typing import Any, Final, Self

from wind.config.models import DType
from wind.errors import ConfigError
from wind.records import Record

BYTES: Final[Mapping[DType, int]] = {"float32": 4, "bfloat16": 2}
# How configs of different families call the same size; the first present counts.
HIDDEN: Final = ("hidden_size", "n_embd", "d_model")
LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers")
HEADS: Final = ("num_attention_heads", "n_head", "num_heads")
INNER: Final = ("intermediate_size", "n_inner", "ffn_dim")
# families whose feed-forward part has two matrices; others gate it by a third
TWO_MATRICES: Final = ("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "deberta-v2", "bert")


class Shape(Record):
    """The sizes of one model that time and memory follow from."""

    parameters: int
    # those of the input embedding: looked up, not multiplied, unless the head is the same matrix
    embedding: int
    layers: int
    hidden: int
    inner: int
    kv: int  # width of the keys of a layer, and of its values
    vocabulary: int
    is_tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int | None = None) -> Self:
        """Return the shape that a config.json describes.

        `parameters` is the true number where the weights are at hand; else it is counted, which is
        exact for Llama and its like and close for others. Raises ConfigError if a size is missing.
        """
        text = config.get("text_config")
        given = text if isinstance(text, Mapping) else config
        hidden, layers, heads = (_size(given, names) for names in (HIDDEN, LAYERS, HEADS))
        inner = _size(given, INNER, 4 * hidden)
        vocabulary = _size(given, ("vocab_size",))
        head = _size(given, ("head_dim",), hidden // heads)
        kv = head * _size(given, ("num_key_value_heads",), heads)
        matrices = 2 if given.get("model_type") in TWO_MATRICES else 3
        is_tied = bool(given.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
        layer = 2 * hidden * heads * head + 2 * hidden * kv + matrices * hidden * inner + 2 * hidden
        embedding = vocabulary * hidden
        counted = layers * layer + hidden + embedding * (1 if is_tied else 2)
        return cls(
            parameters=parameters or counted,
            embedding=embedding,
            layers=layers,
            hidden=hidden,
            inner=inner,
            kv=kv,
            vocabulary=vocabulary,
            is_tied=is_tied,
        )

    def weights(self, dtype: DType) -> float:
        """Return the bytes of the weights."""
        return float(self.parameters * BYTES[dtype])

    def cache(self, dtype: DType) -> float:
        """Return the bytes of one token's keys and values in all layers."""
        return float(2 * self.layers * self.kv * BYTES[dtype])

    def flops(self, context: float) -> float:
        """Return the FLOP of one token's forward pass, two per multiplication and addition.

        The token attends to `context` others: 2 FLOP for each weight that is multiplied, and
        4 hidden * context in each layer for the scores and the weighted values.
        """
        multiplied = self.parameters - (0 if self.is_tied else self.embedding)
        return 2.0 * multiplied + 4.0 * self.layers * self.hidden * context


def _size(config: Mapping[str, Any], names: tuple[str, ...], default: int | None = None) -> int:
    for name in names:
        if isinstance(value := config.get(name), int):
            return value
    if default is None:
        raise ConfigError(f"the model's config.json has no {names[0]}, which a plan needs")
    return default
