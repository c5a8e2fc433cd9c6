"""Benchmark the pages that people read prompts on.

Usage: python benchmarks/pages.py [--prompts N] [--repeats N] [--folder PATH]

A run of two iterations is made up, with eight responses to each prompt, a tenth of the prompts held
out. `wind ui` then answers over the loopback, and every kind of request is timed against what a
plain library takes for the same rows: DuckDB over a Parquet file of the index for lists of prompts,
a filter over the whole dataset for a single one. Medians of several requests count, each for
another prompt. A ratio is the plain side's time by ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from flows.guard import PARAMETER, authorization
from wind.fingerprints import digest
from wind.inspection.query import Query
from wind.inspection.reader import Reader
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.references import find_version
from wind.store.versions import Content, Versions

# responses per prompt
N = 8
SHARD_PROMPTS = 512
# different texts, and tokens of a response
POOL = 5000
TOKENS = 80
EVAL_EVERY = 10
WORDS = ("capital", "river", "sum", "was", "because", "seven", "green", "model", "answer")


def main() -> None:
    """Make the run, measure request after request, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--folder",
        help="The folder to work in, whose disk is measured (default: the temporary folder).",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = Store(folder)
        make_run(store, arguments.prompts)
        print(f"{arguments.prompts} prompts x {N} responses, {os.cpu_count()} processors, {folder}")
        print(f"{'':<34}{'ms, median':>12}{'ms, slowest':>13}{'plain ms':>10}{'ratio':>7}")
        build(folder)
        with_server(store, folder, arguments.repeats)


def make_run(store: Store, prompts: int) -> None:
    """Publish two versions of the run `big`."""
    rng = np.random.default_rng(0)
    ids = [f"{number:032x}" for number in range(prompts)]
    texts = pa.array([" ".join(rng.choice(WORDS, 60)) for _ in range(POOL)])
    is_held_out = np.arange(prompts) % EVAL_EVERY == 0
    asked = _publish(
        store, "prompts", prompts, lambda rows: _prompts(ids, texts, is_held_out, rows)
    )
    train = np.flatnonzero(~is_held_out)
    held_out = np.flatnonzero(is_held_out)
    model = Model(fingerprint="a" * 64, parameters=1)
    before = None
    initial = _responses(store, ids, held_out, texts, seed=9)
    for iteration in (1, 2):
        sampled = _responses(store, ids, train, texts, seed=iteration)
        rewards = _rewards(store, ids, train, seed=iteration)
        tested = _responses(store, ids, held_out, texts, seed=10 + iteration)
        content = Content(
            iteration=iteration,
            recipe={"seed": 0, "evaluation": {"against": "initial"}},
            datasets={
                "prompts": asked,
                "generations": sampled,
                "rewards": rewards,
                "win_rates": _win_rates(store, ids, train, iteration),
                "eval_generations": tested,
                "evaluation": _evaluation(store, ids, held_out, initial, seed=iteration),
            },
            model_in=model,
            model_out=model,
            reference=model,
            previous=before,
        )
        before = Versions(store, "big").publish(content, checks={}, metrics={}, seconds={}).id


def build(folder: str) -> None:
    """Measure how long both indexes take in a process of its own, and its memory."""
    program = (
        "import resource, sys, time; from wind.inspection.reader import Reader; "
        "from wind.store.datasets import Store; from wind.store.references import find_version; "
        "store = Store(sys.argv[1]); reader = Reader(store); began = time.perf_counter(); "
        "idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; "
        "reader.frame(find_version(store, 'big')); "
        "print(time.perf_counter() - began, idle, "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
    )
    seconds, idle, peak = done.stdout.split()
    print(
        f"{'index of both versions':<34}{1000 * float(seconds):>12.0f}"
        f"    peak {peak} MB, {idle} MB before; mapped files count"
    )


def with_server(store: Store, folder: str, repeats: int) -> None:
    """Measure requests to a server, and the plain side of each."""
    command = [sys.executable, "-m", "flows.cli", "ui", "big", "--root", folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = urllib.parse.urlsplit(server.stdout.readline().strip())
        secret = dict(urllib.parse.parse_qsl(url.query))[PARAMETER]
        ask = _asker(f"http://{url.netloc}", secret)
        for name, request, plain in _requests(store, folder, repeats):
            ours = [_timed(lambda path=path: ask(path)) for path in request]  # type: ignore[misc]
            theirs = [_timed(each) for each in plain]
            middle = statistics.median(ours)
            ratio = f"{statistics.median(theirs) / middle:>7.2f}" if theirs else ""
            shown = f"{statistics.median(theirs):>10.1f}" if theirs else ""
            print(f"{name:<34}{middle:>12.1f}{max(ours):>13.1f}{shown}{ratio}", flush=True)
    finally:
        server.terminate()
        server.wait()


def _requests(
    store: Store, folder: str, repeats: int
) -> Iterator[tuple[str, list[str], list[Callable[[], Any]]]]:
    version = find_version(store, "big")
    frame = Reader(store).frame(version)
    table = str(Path(folder) / "index.parquet")
    pyarrow.parquet.write_table(frame.to_arrow(), table)
    lists = (
        ("first page", Query(), "TRUE ORDER BY prompt_id"),
        (
            "sorted",
            Query(sort="-reward_gain"),
            "TRUE ORDER BY reward_gain DESC NULLS LAST, prompt_id",
        ),
        (
            "filtered and sorted",
            Query(where="rank_flips > 0.5 and tokens_max > 80", sort="reward_mean"),
            "rank_flips > 0.5 AND tokens_max > 80 ORDER BY reward_mean NULLS LAST, prompt_id",
        ),
        (
            "searched",
            Query(text="capital river sum"),
            "text ILIKE '%capital river sum%' ORDER BY prompt_id",
        ),
        ("page 1,000", Query(page=1000), "TRUE ORDER BY prompt_id OFFSET 49950"),
    )
    for name, query, condition in lists:
        path = f"/api/prompts?version=big@2&{query.url()}"
        head, _, offset = condition.partition(" OFFSET ")
        sql = f"SELECT * FROM '{table}' WHERE {head} LIMIT 50 OFFSET {offset or 0}"
        yield name, [path] * repeats, [lambda sql=sql: duckdb.sql(sql).fetchall()] * 5  # type: ignore[misc]
    ids = frame["prompt_id"].sample(repeats, seed=0).to_list()
    rows = store.open(version.content.datasets["generations"])
    plain = [
        lambda prompt_id=prompt_id: rows.to_table(filter=pc.field("prompt_id") == prompt_id)
        for prompt_id in ids[:3]
    ]
    yield "one prompt", [f"/api/prompt?version=big@2&id={each}" for each in ids], plain  # type: ignore[misc]
    yield (
        "one sample over the iterations",
        [f"/api/over?version=big@2&id={each}&sample=3" for each in ids],
        [],
    )


def _asker(base: str, secret: str) -> Callable[[str], Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path: str) -> Any:
        headers = {"authorization": authorization(secret)}
        with opener.open(urllib.request.Request(base + path, headers=headers)) as answer:
            return json.load(answer)

    ask("/api/prompts?version=big@2")  # the index comes into memory
    return ask


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def _publish(
    store: Store,
    name: str,
    prompts: int,
    rows: Callable[[range], pa.Table],
    parents: dict[str, AnyHandle] | None = None,
    seed: int = 0,
) -> Dataset:
    begins = range(0, prompts, SHARD_PROMPTS)
    with store.partial(name, digest([name, prompts, seed])) as partial:
        for index, begin in enumerate(begins):
            partial.write(index, rows(range(begin, min(begin + SHARD_PROMPTS, prompts))))
        made = {"stage": name, "code": "0" * 64, "spec": {}}
        return partial.publish(
            len(begins), parents=parents or {}, computed_by=made, numbers={}, provenance={}
        )


def _prompts(ids: list[str], texts: pa.Array, is_held_out: Any, rows: range) -> pa.Table:
    asked = texts.take(pa.array([row % POOL for row in rows])).to_pylist()
    return pa.table(
        {
            "prompt_id": [ids[row] for row in rows],
            "prompt": [f"<|user|>{text}<|assistant|>" for text in asked],
            "messages": [[{"role": "user", "content": text}] for text in asked],
            "prompt_token_ids": [list(range(60))] * len(rows),
            "split": ["eval" if is_held_out[row] else "train" for row in rows],
            "answer": pa.nulls(len(rows), pa.string()),
            "meta": ["{}"] * len(rows),
        }
    )


def _key(ids: list[str], places: Any, rows: range) -> dict[str, Any]:
    return {
        "prompt_id": [ids[places[row]] for row in rows for _ in range(N)],
        "sample_index": np.tile(np.arange(N, dtype=np.int32), len(rows)),
    }


def _responses(store: Store, ids: list[str], places: Any, texts: pa.Array, seed: int) -> Dataset:
    def rows(rows: range) -> pa.Table:
        rng = np.random.default_rng([seed, rows.start])
        count = len(rows) * N
        lengths = rng.integers(20, TOKENS + 20, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids_T = pa.array(rng.integers(0, 1000, offsets[-1]).astype(np.int32))
        return pa.table(
            {
                **_key(ids, places, rows),
                "policy": ["a" * 64] * count,
                "response": texts.take(pa.array(rng.integers(0, POOL, count))),
                "response_token_ids": pa.ListArray.from_arrays(pa.array(offsets), ids_T),
                "logp_sampler": -rng.random(count),
                "finish_reason": np.where(rng.random(count) < 0.05, "length", "stop"),
                "seed": rng.integers(0, 2**40, count),
            }
        )

    return _publish(store, "generations", len(places), rows, seed=seed)


def _rewards(store: Store, ids: list[str], places: Any, seed: int) -> Dataset:
    def rows(rows: range) -> pa.Table:
        rng = np.random.default_rng([seed, rows.start])
        return pa.table(
            {**_key(ids, places, rows), "reward": rng.normal(size=len(rows) * N).round(1)}
        )

    return _publish(store, "rewards", len(places), rows, seed=seed)


def _win_rates(store: Store, ids: list[str], places: Any, seed: int) -> Dataset:
    def rows(rows: range) -> pa.Table:
        count = len(rows) * N
        wins = np.tile(np.arange(N, dtype=np.int32), len(rows))
        return pa.table(
            {
                **_key(ids, places, rows),
                "win_rate": wins / (N - 1),
                "wins": wins,
                "ties": np.zeros(count, np.int32),
                "losses": N - 1 - wins,
                "rank": N - wins,
            }
        )

    return _publish(store, "win_rates", len(places), rows, seed=seed)


def _evaluation(store: Store, ids: list[str], places: Any, initial: Dataset, seed: int) -> Dataset:
    def rows(rows: range) -> pa.Table:
        rng = np.random.default_rng([seed, rows.start])
        count = len(rows) * N
        told = {
            name: rng.normal(size=count)
            for name in ("reward_policy", "reward_reference", "logp_policy", "logp_reference")
        }
        return pa.table(
            {
                **_key(ids, places, rows),
                **told,
                "win_rate": rng.random(count),
                "tie_share": np.zeros(count),
                "response_tokens_policy": np.full(count, TOKENS, np.int32),
                "response_tokens_reference": np.full(count, TOKENS, np.int32),
                "is_truncated_policy": np.zeros(count, bool),
                "is_truncated_reference": np.zeros(count, bool),
                "accuracy_policy": pa.nulls(count, pa.float64()),
                "accuracy_reference": pa.nulls(count, pa.float64()),
            }
        )

    parents: dict[str, AnyHandle] = {"generations_reference": initial}
    return _publish(store, "evaluation", len(places), rows, parents, seed=seed)


if __name__ == "__main__":
    main()
