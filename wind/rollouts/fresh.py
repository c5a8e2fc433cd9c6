"""Fresh training rows, sampled from the policy that is being trained.

A refresh samples for the next `objective.refresh_steps` optimizer steps. Its prompts are divided
among the ranks, each of which samples, rewards and scores its own; then all ranks get all rows, and
train on them as on stored ones. A response's random numbers depend only on the run's seed, the
iteration, the optimizer step, the prompt and the sample, so that the number of ranks changes
nothing but float rounding. Every refresh is a file in the work folder: a resumed training continues
with the rows of its step, and all files are published in the end.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from wind.code.observed import noted
from wind.endpoints import connect
from wind.files import atomic, atomic_write
from wind.prompt_parts import sampled_prompts
from wind.rewards import JUDGED_BY, judging_prompts, responses, sampled_columns
from wind.rollouts import RolloutsSpec, schema_of
from wind.rollouts.anchor import PRECISION, Anchor
from wind.rollouts.frozen import FrozenPolicy
from wind.store.datasets import Store
from wind.store.schemas import conform, declared
from wind.training.assignments import OBSERVED, Assignment, World
from wind.training.batches import COLUMNS, Integers, Rows, as_rows
from wind.training.export import save_weights
from wind.training.row_sources import plan_of
from wind.training.weights import PolicyWeights
from wind.win_rates import win_rates

# export folder inside the work folder
ANCHOR: Final = "anchor"


class FreshRows:
    """A `RowSource` that samples."""

    def __init__(self, assignment: Assignment[RolloutsSpec], engine: Any, world: World) -> None:
        spec, store = assignment.spec, Store(assignment.root)
        self._spec = spec
        self._engine = engine
        self._world = world
        self._work = Path(assignment.work)
        self._start = store.path(spec.policy)
        self._prompts = train_prompts(spec, store)
        self.plan = plan_of(spec, len(self._prompts))
        connect(assignment.connections)
        self._judge = spec.reward.judge(
            store, spec.inference, world.device, assignment.function_seconds
        )
        self._frozen = FrozenPolicy(spec, store, world.device)
        self._policy = PolicyWeights(engine, spec.training.lora)
        self._anchor = Anchor(engine, self._policy, store.path(spec.reference), spec.rate)
        self._done = assignment.checkpoint.steps if assignment.checkpoint else 0
        if assignment.checkpoint and spec.rate:
            self._anchor.load(Path(assignment.checkpoint.folder))
        # first step served by the current rows
        self._refresh: int | None = None
        self._rows: Rows
        # of each group of the rows
        self._steps: Integers

    def step(self, step: int) -> tuple[Rows, Integers]:
        """Return the rows of the step's refresh and the step's groups.

        The rows are sampled at the refresh's first step.
        """
        first = first_of(self._spec, step)
        if first != self._refresh:
            path = rollouts_file(self._work, first)
            table = read_rollouts(path) if first < self._done else self._sampled(first)
            self._rows, self._steps = as_steps(table, self._prompts, self._spec)
            self._refresh = first
        return self._rows, np.flatnonzero(self._steps == step + 1)

    def stepped(self) -> None:
        """Move the anchor."""
        self._done += 1
        if self._spec.rate:
            self._anchor.move()

    def save(self, folder: Path) -> list[Path]:
        """Save the anchor, and return the files of the rows so far.

        The anchor goes into the checkpoint; the files lie in the work folder.
        """
        if self._spec.rate:
            self._anchor.save(folder)
        paths = rollouts_files(self._work, self._spec, self._done)
        return [*paths, *(path.with_suffix(OBSERVED) for path in paths)]

    def export(self) -> dict[str, list[float]]:
        """Export the anchor as a model folder if it moves.

        The next iteration starts from it.
        """
        if not self._spec.rate:
            return {}
        self._frozen.fill(self._anchor.whole)
        weights = self._anchor.weights()
        if self._world.rank == 0:
            save_weights(
                self._engine.module.model, weights, self._start, self._work / ANCHOR, PRECISION
            )
        return {ANCHOR: self._frozen.probe(self._rows)}

    def _sampled(self, first: int) -> pa.Table:
        """Sample and save the refresh that starts at 0-based step `first`."""
        last = min(first + (self._spec.refresh), self.plan.steps)
        groups = [
            (step + 1, int(group))
            for step in range(first, last)
            for group in np.sort(self.plan.step_groups(step))
        ]
        mine = pl.DataFrame(
            groups[self._world.rank :: self._world.ranks],
            {"step": pl.Int32, "group": pl.Int64},
            orient="row",
        )
        rows = self._judged(
            mine.join(self._prompts, on="group", how="left", maintain_order="left").drop("group")
        )
        schema = schema_of(self._spec)
        table = gathered(conform(rows.select(schema.names).to_arrow(), schema), self._world)
        table = table.sort_by([(name, "ascending") for name in declared("rollouts").key])
        if self._world.rank == 0:
            path = rollouts_file(self._work, first)
            path.parent.mkdir(exist_ok=True)
            atomic_write(path.with_suffix(OBSERVED), noted().model_dump_json().encode())
            write_rollouts(path, table)
        return table

    def _judged(self, prompts: pl.DataFrame) -> pl.DataFrame:
        """Sample, score, reward and compare responses to `prompts`.

        `prompts` has step, prompt_token_ids and the columns of JUDGED_BY. Collective under ZeRO-3.
        """
        samples, drawn = self._spec.sampling.samples_per_prompt, []
        if of_anchor := self._spec.objective.anchor_samples_for(samples):
            self._frozen.fill(self._anchor.whole)
            drawn = [self._frozen.draw(prompts, "anchor", of_anchor, first_index=samples)]
        self._frozen.fill(self._policy.whole)
        drawn = [self._frozen.draw(prompts, "policy", samples), *drawn]
        rows = pl.concat(drawn).join(
            prompts, on=["step", "prompt_id"], how="left", maintain_order="left"
        )
        rows = rows.with_columns(logp_policy=self._frozen.score(rows, was_trained=self._done > 0))
        self._frozen.fill(self._anchor.whole)
        was_moved = self._done > 0 and self._spec.rate > 0
        rows = rows.with_columns(logp_reference=self._frozen.score(rows, was_trained=was_moved))
        return self._compared(self._rewarded(rows))

    def _rewarded(self, rows: pl.DataFrame) -> pl.DataFrame:
        names = schema_of(self._spec).names
        # a rank without prompts; a user's function is never called with nothing
        if rows.is_empty():
            return rows.with_columns(
                pl.lit(None, pl.Float64).alias(name) for name in names if name not in rows.columns
            )
        # A relative reward compares all responses to one prompt: here, to one prompt at one step.
        by_step = pl.concat_str("step", "prompt_id", separator="/")
        asked_rows = rows.with_columns(
            prompt_id=by_step if self._spec.reward.gives_preferences else pl.col("prompt_id")
        )
        prompts = asked_rows.select(JUDGED_BY).unique("prompt_id")
        asked = responses(prompts, asked_rows.select(sampled_columns(self._spec.reward)))
        asked = replace(asked, groups=rows.select(by_step).to_series().to_list())
        columns = self._judge(asked, None, lambda done, total: None)
        return rows.with_columns(
            **{name: pl.Series(values) for name, values in columns.items() if name in names}
        )

    def _compared(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Add win rate and rank among responses from one source.

        Responses are compared to those drawn from the same model for the same prompt and step; a
        single response gets 1/2 and 1.
        """
        named = rows.drop("win_rate", "rank", strict=False).with_columns(
            name=pl.concat_str("step", "drawn_from", "prompt_id", separator="/")
        )
        is_alone = pl.len().over("name") == 1
        siblings = named.filter(~is_alone).select("sample_index", "reward", prompt_id="name")
        compared = win_rates(siblings, self._spec.win_rate).select(
            "sample_index", "win_rate", "rank", name="prompt_id"
        )
        joined = named.join(
            compared, on=["name", "sample_index"], how="left", maintain_order="left", validate="1:1"
        )
        return joined.with_columns(
            win_rate=pl.when(is_alone).then(0.5).otherwise("win_rate"),
            rank=pl.when(is_alone).then(1).otherwise("rank"),
        )


def train_prompts(spec: RolloutsSpec, store: Store) -> pl.DataFrame:
    """Return the train prompts sorted by id, with their number as `group`."""
    frame = judging_prompts(store, spec.prompts, "prompt_token_ids", "split")
    ours = sampled_prompts(frame, "train", spec.seed, spec.iteration, spec.parts)
    return ours.drop("split").sort("prompt_id").with_row_index("group").cast({"group": pl.Int64})


def as_steps(table: pa.Table, prompts: pl.DataFrame, spec: RolloutsSpec) -> tuple[Rows, Integers]:
    """Return a refresh as training rows, and every group's 1-based step."""
    frame = pl.DataFrame(table).join(
        prompts.select("prompt_id", "prompt_token_ids"),
        on="prompt_id",
        how="left",
        maintain_order="left",
    )
    frame = frame.with_columns(
        group=pl.concat_str("step", "prompt_id", separator="/"),
        from_anchor=pl.col("drawn_from") == "anchor",
        samples=pl.len().over("step", "prompt_id", "drawn_from"),
    )
    rows = as_rows(frame, "group", [*COLUMNS, *["from_anchor"] * spec.objective.draws_from_anchor])
    return rows, frame["step"].to_numpy()[rows.starts[:-1]].astype(np.int64)


def gathered(table: pa.Table, world: World) -> pa.Table:
    """Concatenate the tables of all ranks; every rank must call it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    ours = torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8).to(world.device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=world.device) for _ in range(world.ranks)]
    torch.distributed.all_gather(sizes, torch.tensor([len(ours)], device=world.device))
    longest = int(torch.cat(sizes).max())
    parts = [
        torch.zeros(longest, dtype=torch.uint8, device=world.device) for _ in range(world.ranks)
    ]
    torch.distributed.all_gather(parts, torch.nn.functional.pad(ours, (0, longest - len(ours))))
    contents = [
        part[: int(size)].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)
    ]
    return pa.concat_tables(pa.ipc.open_stream(content).read_all() for content in contents)


def first_of(spec: RolloutsSpec, step: int) -> int:
    """Return the first step of the refresh that serves `step`, both 0-based."""
    return step - step % (spec.refresh)


def rollouts_files(work: Path, spec: RolloutsSpec, steps: int) -> list[Path]:
    """Return the refresh files of the first `steps` steps, in order."""
    return [rollouts_file(work, first) for first in range(0, steps, spec.refresh)]


def rollouts_file(work: Path, first: int) -> Path:
    """Return the file of the refresh that starts at 0-based step `first`."""
    return work / "rollouts" / f"step-{first + 1:08d}.arrow"


def read_rollouts(path: Path) -> pa.Table:
    """Read the rows of a refresh."""
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def write_rollouts(path: Path, table: pa.Table) -> None:
    """Write the rows of a refresh to `path`."""
    path.parent.mkdir(exist_ok=True)
    with (
        atomic(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
