"""Benchmark log-probabilities and the scores of a causal reward model.

Usage: python benchmarks/scoring.py [--prompts N] [--rounds N]

A Llama of 6.5 million random weights scores 8 responses to each prompt, in float32 on one thread,
on prompts four times as long as their responses, of two sizes, and on skewed lengths. It runs as before
prompts were shared, as loops written by hand for the purpose, and as now, in turns. Prints the
medians of CPU seconds, how many times as fast as now each is, and the largest difference of a
result from that before.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from wind.logps import padded, response_logps
from wind.models.sequence_logps import SequenceLogps
from wind.rewards.scorer import Scorer

SAMPLES: Final = 8
VOCABULARY: Final = 4096
# the default of inference.batch_tokens
BATCH_TOKENS: Final = 16384
HAND_BATCH_TOKENS: Final = 2048


@dataclass(frozen=True)
class Rows:
    """Prompts, each with its responses, and the same as one row for each response."""

    prompts: list[list[int]]
    responses: list[list[list[int]]]

    def flat(self) -> tuple[list[str], list[list[int]], list[list[int]]]:
        """Return prompt ids, prompts and responses, row by row."""
        rows = [
            (str(number), prompt, response)
            for number, (prompt, answers) in enumerate(
                zip(self.prompts, self.responses, strict=True)
            )
            for response in answers
        ]
        ids, prompts, responses = zip(*rows, strict=True)
        return list(ids), list(prompts), list(responses)


def main() -> None:
    """Measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    policy = LlamaForCausalLM(config).eval().requires_grad_(False)
    reward = LlamaForSequenceClassification(config).eval().requires_grad_(False)
    for title, rows in (
        ("256 + 64 tokens", made(arguments.prompts, lambda _: (256, [64] * SAMPLES))),
        ("1024 + 256 tokens", made(arguments.prompts // 4, lambda _: (1024, [256] * SAMPLES))),
        ("skewed lengths", made(arguments.prompts, skewed_lengths)),
    ):
        measure(f"logps, {title}", logps_sides(policy, rows), arguments.rounds)
        measure(f"classifier, {title}", reward_sides(reward, rows), arguments.rounds)


def skewed_lengths(generator: random.Random) -> tuple[int, list[int]]:
    """Return lengths with a long tail, 96 tokens in the median for prompts and responses."""
    lengths = [
        min(768, max(4, round(generator.lognormvariate(4.56, 0.8)))) for _ in range(SAMPLES + 1)
    ]
    return lengths[0], lengths[1:]


def made(prompts: int, lengths: Callable[[random.Random], tuple[int, list[int]]]) -> Rows:
    """Return rows of random tokens with these lengths."""
    generator = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [generator.randrange(1, VOCABULARY) for _ in range(length)]

    drawn = [lengths(generator) for _ in range(prompts)]
    return Rows(
        [tokens(prompt) for prompt, _ in drawn],
        [[tokens(length) for length in responses] for _, responses in drawn],
    )


def measure(title: str, sides: dict[str, Callable[[], list[float]]], rounds: int) -> None:
    """Run the sides in turns and print a line for each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, list[float]] = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, side in sides.items():
                began = time.process_time()
                results[name] = side()
                # the first round warms up
                if number:
                    seconds[name].append(time.process_time() - began)
    now = statistics.median(seconds["now"])
    before = results["before"]
    for name, taken in seconds.items():
        median = statistics.median(taken)
        difference = max(abs(a - b) for a, b in zip(results[name], before, strict=True))
        print(f"{title:30} {name:22} {median:7.3f} s  {now / median:5.2f}  {difference:.1e}")


def batched(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Return row numbers in batches of at most `batch_tokens` padded tokens, longest first."""
    made: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if made and lengths[made[-1][0]] * (len(made[-1]) + 1) <= batch_tokens:
            made[-1].append(row)
        else:
            made.append([row])
    return made


def logps_sides(policy: Any, rows: Rows) -> dict[str, Callable[[], list[float]]]:
    """Return the ways to compute log-probabilities."""
    ids, prompts, responses = rows.flat()
    scorer = SequenceLogps(policy)

    def whole(batch_tokens: int) -> list[float]:
        lengths = [
            len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)
        ]
        values = [0.0] * len(lengths)
        for batch in batched(lengths, batch_tokens):
            inputs = padded([prompts[row] for row in batch], [responses[row] for row in batch])
            for row, value in zip(batch, scorer(*inputs).tolist(), strict=True):
                values[row] = value
        return values

    def by_prompt() -> list[float]:
        values = []
        for prompt, answers in zip(rows.prompts, rows.responses, strict=True):
            tensors = padded([prompt] * SAMPLES, answers)
            start = len(prompt) - 1
            ids_B_T, _, response_B_T = (tensor[:, start:] for tensor in tensors)
            states = policy.model(
                input_ids=ids_B_T, past_key_values=prompt_cache(policy.model, prompt[:-1])
            ).last_hidden_state
            values += scorer.response_logps(states, ids_B_T, response_B_T).tolist()
        return values

    return {
        "before": lambda: whole(BATCH_TOKENS),
        "by hand, sorted": lambda: whole(HAND_BATCH_TOKENS),
        "by hand, by prompt": by_prompt,
        "now": lambda: response_logps(
            "policy", policy, ids, prompts, responses, BATCH_TOKENS, lambda done: None
        ),
    }


def reward_sides(reward: Any, rows: Rows) -> dict[str, Callable[[], list[float]]]:
    """Return the ways to score with a classifier."""
    ids, prompts, responses = rows.flat()
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]

    def whole(batch_tokens: int, is_masked: bool) -> list[float]:
        values = [0.0] * len(texts)
        for batch in batched([len(text) for text in texts], batch_tokens):
            ids_B_T = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(texts[row]) for row in batch], batch_first=True
            )
            mask = (ids_B_T != 0).long() if is_masked else None
            outputs = reward(input_ids=ids_B_T, attention_mask=mask, use_cache=False).logits
            for row, value in zip(batch, outputs[:, 0].tolist(), strict=True):
                values[row] = value
        return values

    def by_prompt() -> list[float]:
        values = []
        for prompt, answers in zip(rows.prompts, rows.responses, strict=True):
            ids_B_T = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(response) for response in answers], batch_first=True
            )
            outputs = reward(input_ids=ids_B_T, past_key_values=prompt_cache(reward.model, prompt))
            values += outputs.logits[:, 0].tolist()
        return values

    scorer = Scorer("reward", reward, BATCH_TOKENS)
    return {
        "before": lambda: whole(BATCH_TOKENS, True),
        "by hand, sorted": lambda: whole(HAND_BATCH_TOKENS, False),
        "by hand, by prompt": by_prompt,
        "now": lambda: scorer.outputs(
            [{"input_ids": text} for text in texts], ids, str, lambda done, total: None
        ).tolist(),
    }


def prompt_cache(decoder: Any, prompt: list[int]) -> DynamicCache:
    """Return the cache of a prompt, for all its responses."""
    cache = DynamicCache(config=decoder.config)
    decoder(input_ids=torch.tensor([prompt]), past_key_values=cache)
    cache.batch_repeat_interleave(SAMPLES)
    return cache


if __name__ == "__main__":
    main()
