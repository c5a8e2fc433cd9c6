"""The demo's base policy: a small Llama that slips at sums.

It has 0.9 M parameters, first learned the sums, and then read many of them answered wrongly. It
therefore knows the sums, yet samples the right one only about one time in three: this is what
best-of-N distillation can fix.
"""

from pathlib import Path
from typing import Any, Final

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from wind.demo import sums
from wind.demo.tokenizer import policy_tokenizer
from wind.demo.training import deterministic, train

SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
# label of a position without loss
IGNORED: Final = -100


def pretrain_policy(
    out: Path,
    *,
    seed: int = 0,
    clean_steps: int = 350,
    noisy_steps: int = 120,
    batch: int = 128,
    lr: float = 2e-3,
    wrong_share: float = 0.75,
) -> dict[str, float]:
    """Train the base policy and write it as a Hugging Face folder.

    It learns the sums from right answers, and then to slip from a corpus of which `wrong_share` is
    wrong. Returns its number of parameters, last loss, and accuracy on held-out problems.
    """
    steps = clean_steps + noisy_steps
    tokenizer = policy_tokenizer()
    with deterministic(seed):
        model = LlamaForCausalLM(_config(tokenizer))
        rows = [
            *sums.corpus(seed=seed, size=clean_steps * batch, wrong_share=0.0),
            *sums.corpus(seed=seed, size=noisy_steps * batch, wrong_share=wrong_share),
        ]
        ids_B_T, labels_B_T = encode(tokenizer, rows)

        def loss_at(step: int) -> torch.Tensor:
            rows_of_step = slice(step * batch, (step + 1) * batch)
            logits_B_T_V = model(input_ids=ids_B_T[rows_of_step]).logits
            return torch.nn.functional.cross_entropy(
                logits_B_T_V[:, :-1].flatten(0, 1),
                labels_B_T[rows_of_step, 1:].flatten(),
                ignore_index=IGNORED,
            )

        losses = train(model, loss_at, steps=steps, lr=lr)
        accuracy = expected_accuracy(model, tokenizer, sums.held_out(seed))
    model.generation_config = _generation_config(tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "parameters": model.num_parameters(),
        "loss": sum(losses[-50:]) / len(losses[-50:]),
        "accuracy": accuracy,
    }


def random_policy(out: Path, *, seed: int) -> None:
    """Write a policy of the base policy's shape with weights drawn by `seed`.

    It answers nonsense, and is all that it takes to see whether engines run.
    """
    tokenizer = policy_tokenizer()
    with deterministic(seed):
        model = LlamaForCausalLM(_config(tokenizer))
    model.generation_config = _generation_config(tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def encode(tokenizer: Any, rows: list[sums.Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize whole chats into ids and labels, both [B, T], right-padded.

    Labels are set only on the response and its end.
    """
    messages = [{"role": "user", "content": "\0"}]
    before, after = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ).split("\0")
    prompts = tokenizer([before + row.prompt + after for row in rows])["input_ids"]
    responses = tokenizer([row.response + tokenizer.eos_token for row in rows])["input_ids"]
    longest = max(
        len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)
    )
    ids_B_T = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels_B_T = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids_B_T[row, :end] = torch.tensor(prompt + response)
        labels_B_T[row, len(prompt) : end] = torch.tensor(response)
    return ids_B_T, labels_B_T


@torch.no_grad()
def expected_accuracy(model: Any, tokenizer: Any, problems: list[tuple[int, int]]) -> float:
    """Return the mean probability, at temperature 1, of the exact sum."""
    rows = [sums.Example(sums.prompt_text(*problem), str(sum(problem))) for problem in problems]
    ids_B_T, labels_B_T = encode(tokenizer, rows)
    logps_B_T_V = model(input_ids=ids_B_T).logits[:, :-1].log_softmax(-1)
    labels_B_T = labels_B_T[:, 1:]
    logps_B_T = logps_B_T_V.gather(-1, labels_B_T.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    logps_B = (logps_B_T * (labels_B_T != IGNORED)).sum(-1)
    return float(logps_B.exp().mean())


def _config(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        **SHAPE,
    )


def _generation_config(tokenizer: Any) -> GenerationConfig:
    """Return a config that stops at the end of turn or text.

    So do chat models.
    """
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eos|>")],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
