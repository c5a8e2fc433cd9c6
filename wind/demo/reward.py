"""The demo's reward model: a Llama with one output, fitted to preferences.

The fit is that of Bradley and Terry (1952). It never sees a gold answer, only which of two
responses a rater liked, and the rater is wrong about one time in twenty.
"""

import math
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from wind.demo import sums
from wind.demo.tokenizer import reward_tokenizer
from wind.demo.training import deterministic, train

SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "num_labels": 1,
    "max_position_embeddings": 128,
}
# periods of the sinusoids that initialize numbers
PERIODS: Final = (2.0, 4.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


def train_reward_model(
    out: Path,
    *,
    seed: int = 0,
    steps: int = 1300,
    batch: int = 96,
    lr: float = 3e-3,
    pairs: int = 50_000,
    flip_share: float = 0.05,
) -> dict[str, float]:
    """Train the reward model and write it as a Hugging Face folder.

    Returns its number of parameters, last loss, and accuracy on held-out pairs.
    """
    tokenizer = reward_tokenizer()
    with deterministic(seed):
        model = _model(tokenizer)
        preferences = sums.preferences(
            sums.seen(seed), seed=seed, size=pairs, flip_share=flip_share
        )
        rows = [(pair.prompt, pair.chosen) for pair in preferences] + [
            (pair.prompt, pair.rejected) for pair in preferences
        ]
        chosen_B_T, rejected_B_T = encode(tokenizer, rows).chunk(2)

        def loss_at(_step: int) -> torch.Tensor:
            drawn = torch.randint(pairs, (batch,))
            chosen_B, rejected_B = rewards(
                model, torch.cat([chosen_B_T[drawn], rejected_B_T[drawn]])
            ).chunk(2)
            return -torch.nn.functional.logsigmoid(chosen_B - rejected_B).mean()

        losses = train(model, loss_at, steps=steps, lr=lr)
        accuracy = ranking_accuracy(model, tokenizer, sums.slipped(sums.held_out(seed)))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "parameters": model.num_parameters(),
        "loss": sum(losses[-50:]) / len(losses[-50:]),
        "accuracy": accuracy,
    }


def encode(tokenizer: Any, rows: list[tuple[str, str]]) -> torch.Tensor:
    """Tokenize chats with one prompt and one response into ids [B, T].

    They are right-padded.
    """
    chat = [{"role": "user", "content": "\0"}, {"role": "assistant", "content": "\0"}]
    # rendered once, since Jinja is slow
    before, between, after = tokenizer.apply_chat_template(chat, tokenize=False).split("\0")
    texts = [before + prompt + between + response + after for prompt, response in rows]
    ids_B_T: torch.Tensor = tokenizer(
        texts, padding=True, padding_side="right", return_tensors="pt"
    )["input_ids"]
    return ids_B_T


def rewards(model: Any, ids_B_T: torch.Tensor) -> torch.Tensor:
    """Return the reward [B] of every chat.

    The model itself finds the last token that is not padding.
    """
    rewards_B: torch.Tensor = model(
        input_ids=ids_B_T, attention_mask=ids_B_T != model.config.pad_token_id
    ).logits.squeeze(-1)
    return rewards_B


@torch.no_grad()
def ranking_accuracy(model: Any, tokenizer: Any, pairs: list[sums.Preference]) -> float:
    """Return the share of pairs whose chosen response gets the higher reward."""
    chosen_B = rewards(model, encode(tokenizer, [(pair.prompt, pair.chosen) for pair in pairs]))
    rejected_B = rewards(model, encode(tokenizer, [(pair.prompt, pair.rejected) for pair in pairs]))
    return float((chosen_B > rejected_B).double().mean())


def _model(tokenizer: Any) -> LlamaForSequenceClassification:
    """Return an untrained model whose number tokens are sinusoids of their value.

    From the start it can tell near from far.
    """
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), **SHAPE, **tokens)
    model = LlamaForSequenceClassification(config)
    numbers = {
        token: index
        for token, index in tokenizer.get_vocab().items()
        if token.isascii() and token.isdigit()
    }
    values_B = torch.tensor([float(token) for token in numbers])
    angles_B_P = 2 * math.pi * values_B.unsqueeze(-1) / torch.tensor(PERIODS)
    features_B_F = torch.cat([angles_B_P.sin(), angles_B_P.cos()], dim=-1)
    with torch.no_grad():
        model.model.embed_tokens.weight[list(numbers.values()), : features_B_F.shape[-1]] = (
            features_B_F
        )
    return model
