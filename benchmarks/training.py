"""Benchmark training: useful tokens a second and peak memory, beside TRL's DPOTrainer.

Usage: python benchmarks/training.py [--lengths 256+64 128+128] [--repeats 3]

Both sides train the same Llama of random weights (5.3 M parameters, float32, AdamW, one thread) on
the same prompts with eight responses each, all of one length, with the reference's log-probabilities
known before. Each optimizer step takes four prompts, eight rows a forward pass. TRL gets the eight
responses as four disjoint pairs, so that it too computes every response exactly once; all 28 pairs
would take it seven times as long. A useful token is one of a prompt and its response, counted once
for every response as padded rows would compute it: the same number on both sides.

Sides run in turn, each in a process of its own. Printed are medians over the steps of all repeats
but each one's first, by processor time, which other processes on the machine disturb less than wall
time, and the peak memory of the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

N = 8
BATCH_PROMPTS = 4
STEPS = 4
VOCABULARY = 1024
LR = 1e-4
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Run the sides in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", nargs="+", default=["256+64", "128+128"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.folder)))
        return
    print(f"{'prompt+response':<17}{'side':<9}{'tokens/s':>9}{'of TRL':>8}{'peak MB':>9}")
    for lengths in arguments.lengths:
        prompt, response = map(int, lengths.split("+"))
        with tempfile.TemporaryDirectory() as folder:
            make_inputs(Path(folder), prompt, response)
            runs: dict[str, list[Any]] = {side: [] for side in SIDES}
            for _ in range(arguments.repeats):
                for side, made in runs.items():
                    made.append(in_its_own_process(side, folder))
        print_rows(lengths, BATCH_PROMPTS * N * (prompt + response), runs)


def print_rows(lengths: str, tokens: int, runs: dict[str, list[Any]]) -> None:
    """Print one line per side; a step has `tokens` useful tokens."""
    speeds = {
        side: tokens / statistics.median(second for run in made for second in run["seconds"])
        for side, made in runs.items()
    }
    for side, made in runs.items():
        peak = statistics.median(run["peak_bytes"] for run in made) / 1e6
        share = speeds[side] / speeds["trl"]
        print(f"{lengths:<17}{side:<9}{speeds[side]:>9.0f}{share:>8.2f}{peak:>9.0f}", flush=True)


def in_its_own_process(side: str, folder: str) -> Any:
    """Return what `side` measured."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_inputs(folder: Path, prompt: int, response: int) -> None:
    """Write a model, and token ids of the prompts and responses of all steps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")

    def drawn(length: int) -> list[int]:
        tokens: list[int] = torch.randint(3, VOCABULARY, (length,)).tolist()
        return tokens

    rows = [
        {"prompt": drawn(prompt), "responses": [[*drawn(response - 1), 2] for _ in range(N)]}
        for _ in range(BATCH_PROMPTS * STEPS)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))


def measured(side: str, folder: Path) -> dict[str, Any]:
    """Return the processor seconds of every step but the first, and the process's peak memory."""
    import torch

    torch.set_num_threads(1)
    rows = json.loads((folder / "rows.json").read_text())
    ends = SIDES[side](folder, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": [end - start for start, end in pairwise(ends)],
        "peak_bytes": peak,
    }


def padded(folder: Path, rows: Sequence[Any]) -> list[float]:
    """Train with every row by itself; return the times at the end of each step."""
    return _wind(folder, rows, "off")


def shared(folder: Path, rows: Sequence[Any]) -> list[float]:
    """Train with shared prompts; return the times at the end of each step."""
    return _wind(folder, rows, "auto")


def _wind(folder: Path, rows: Sequence[Any], sharing: str) -> list[float]:
    import contextlib

    # DeepSpeed asks for it, and TRL would take it for a distributed training
    os.environ["LOCAL_RANK"] = "0"
    import deepspeed
    import numpy as np
    import torch

    from wind.config.objectives import WindObjectiveConfig
    from wind.config.training import TrainingConfig
    from wind.models import deterministic
    from wind.objectives import objective_for
    from wind.training.assignments import World
    from wind.training.batches import Plan
    from wind.training.engine import optimizer_step, start_engine
    from wind.training.loop import accumulate

    training = TrainingConfig.model_validate(
        {"batch_prompts": BATCH_PROMPTS, "micro_prompts": 1, "zero_stage": 0, "lr": LR}
        | {"prompt_sharing": sharing}
    )
    plan = Plan(training=training, seed=0, iteration=1, groups=len(rows))
    world = World(rank=0, ranks=1, device="cpu")
    ends = []
    with contextlib.redirect_stdout(sys.stderr), deterministic():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        deepspeed.init_distributed(dist_init_required=False)
        engine = start_engine(folder / "model", training, 0, with_intercept=False)
        given = _rows(rows)
        objective = objective_for(WindObjectiveConfig())
        is_shared = engine.module.shares_prompts
        for step in range(STEPS):
            groups = np.arange(step * BATCH_PROMPTS, (step + 1) * BATCH_PROMPTS)
            accumulate(engine, given, groups, plan, objective, world, step, is_shared=is_shared)
            optimizer_step(engine, LR)
            ends.append(time.process_time())
        deepspeed.comm.destroy_process_group()
    return ends


def _rows(rows: Sequence[Any]) -> Any:
    import polars as pl

    from wind.training.batches import COLUMNS, as_rows

    frame = pl.DataFrame(
        {
            "prompt_id": f"{number:06}",
            "prompt_token_ids": row["prompt"],
            "response_token_ids": response,
            "logp_policy": -7.0 * len(response),
            "logp_reference": -7.0 * len(response),
            "win_rate": place / (N - 1),
            "reward": float(place),
            "rank": float(N - place),
            "samples": float(N),
        }
        for number, row in enumerate(rows)
        for place, response in enumerate(row["responses"])
    )
    return as_rows(frame, "prompt_id", COLUMNS)


def trl(folder: Path, rows: Sequence[Any]) -> list[float]:
    """Train with TRL; return the times at the end of each step."""
    import contextlib

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    ends = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **rest: Any) -> None:
            ends.append(time.process_time())

    settings = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=N // 2,
        gradient_accumulation_steps=BATCH_PROMPTS,
        num_train_epochs=1,
        learning_rate=LR,
        precompute_ref_log_probs=True,
        # it has memory to spare, and recomputing would take time
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pairs = [
        {
            "prompt": _text(row["prompt"]) + " ",
            "chosen": _text(row["responses"][place + 1]),
            "rejected": _text(row["responses"][place]),
        }
        for row in rows
        for place in range(0, N, 2)
    ]
    with contextlib.redirect_stdout(sys.stderr):
        DPOTrainer(
            str(folder / "model"),
            args=settings,
            train_dataset=Dataset.from_list(pairs),
            processing_class=_tokenizer(),
            callbacks=[Clock()],
        ).train()
    return ends


def _text(tokens: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _tokenizer() -> Any:
    """Return a tokenizer that reads back what `_text` writes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{token}": token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t2", pad_token="t0")


SIDES: dict[str, Callable[[Path, Sequence[Any]], list[float]]] = {
    "padded": padded,
    "shared": shared,
    "trl": trl,
}


if __name__ == "__main__":
    main()
