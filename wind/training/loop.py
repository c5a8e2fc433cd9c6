"""The training loop of one rank.

It is the same for one process and for many, on CPU and on GPU.

The gradient of an optimizer step is that of the mean loss over all its rows. DeepSpeed divides by
ranks and micro-batches, which gives the mean only if all hold equally many rows; each micro-batch
is therefore weighted by its share of the step's rows. In an incomplete step, a rank with nothing to
compute runs a micro-batch at weight zero, since every pass is collective.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wind.fingerprints import digest
from wind.models import deterministic
from wind.objectives import Objective, objective_for
from wind.stages import Progress
from wind.store.datasets import Store
from wind.training.assignments import Assignment, Row, Trained, World
from wind.training.batches import Integers, Plan, Rows
from wind.training.checkpoints import load_checkpoint, save_checkpoint
from wind.training.engine import gathered_weights, optimizer_step, start_engine
from wind.training.export import EXPORT, probe_logps, save_policy
from wind.training.guards import KINDS, marks, refuse_marked, refuse_norm, refuse_probe
from wind.training.passes import Passes
from wind.training.row_sources import RowSource
from wind.training.schedules import learning_rate
from wind.training.shared_checkpoints import share_checkpoint


def train_rank(
    assignment: Assignment[Any],
    open_source: Callable[[Assignment[Any], Any, World], RowSource],
    world: World,
    progress: Progress,
) -> Trained | None:
    """Train from the checkpoint to the end, and export the policy.

    Returns the result on rank 0 and None on the others. The process group must exist. Raises
    TrainingError on all ranks if a loss, a gradient or anything derived from them is not finite.
    """
    spec, store, work, checkpoint = (
        assignment.spec,
        Store(assignment.root),
        Path(assignment.work),
        assignment.checkpoint,
    )
    with deterministic():
        seed = int(digest(["adapters", spec.seed, spec.iteration])[:15], 16)
        with_intercept = spec.objective.learns_intercept
        engine = start_engine(
            store.path(spec.policy), spec.training, seed, with_intercept=with_intercept
        )
        if checkpoint:
            load_checkpoint(engine, checkpoint)
        source = open_source(assignment, engine, world)
        history = run_steps(engine, assignment, source, store, world, progress)
        rows, _ = source.step(source.plan.steps - 1)
        probe = {
            EXPORT: probe_logps(engine.module, rows, spec.training.micro_prompts, world.device)
        }
        refuse_probe(
            probe[EXPORT], rows.prompt_ids[: spec.training.micro_prompts], source.plan.steps
        )
        weights = gathered_weights(engine)
        if world.rank == 0:
            save_policy(engine.module.model, weights, store.path(spec.policy), work, spec.training)
        # here the others wait for the writing, for up to `GROUP_TIMEOUT`
        torch.distributed.barrier()
        probe |= source.export()
        torch.distributed.barrier()
        engine.destroy()
    return Trained(rows=history, probe_logps=probe) if world.rank == 0 else None


def run_steps(
    engine: Any,
    assignment: Assignment[Any],
    source: RowSource,
    store: Store,
    world: World,
    progress: Progress,
) -> list[Row]:
    """Run the remaining steps, and return the rows of all steps.

    Raises TrainingError on all ranks, before the weights are affected, if a step's loss or gradient
    is not finite.
    """
    spec, work, checkpoint, plan = (
        assignment.spec,
        Path(assignment.work),
        assignment.checkpoint,
        source.plan,
    )
    objective = objective_for(spec.objective)
    is_shared = engine.module.shares_prompts
    history = list(checkpoint.rows) if checkpoint else []
    first = checkpoint.steps if checkpoint else 0
    for step in range(first, plan.steps):
        rows, groups = source.step(step)
        metrics = accumulate(
            engine, rows, groups, plan, objective, world, step + 1, is_shared=is_shared
        )
        metrics["learning_rate"] = learning_rate(spec.training, step, plan.steps)
        metrics["grad_norm"] = optimizer_step(engine, metrics["learning_rate"])
        refuse_norm(metrics["grad_norm"], [rows.prompt_ids[group] for group in groups], step + 1)
        source.stepped()
        history += [(step + 1, name, metrics[name]) for name in sorted(metrics)]
        is_due = (step + 1) % spec.training.checkpoint_steps == 0
        if is_due if step + 1 < plan.steps else assignment.keep_state:
            save_checkpoint(engine, source, work, step + 1, history)
            share_checkpoint(store, work, step + 1, world)
        if world.rank == 0:
            progress(step + 1, plan.steps)
    return history


def accumulate(
    engine: Any,
    rows: Rows,
    groups: Integers,
    plan: Plan,
    objective: Objective,
    world: World,
    step: int,
    *,
    is_shared: bool = False,
) -> dict[str, float]:
    """Accumulate the gradient of the mean loss over the rows of `groups`.

    With `is_shared` every prompt is computed once. Returns the mean loss and the mean metrics.
    Raises TrainingError on all ranks, naming the step and the prompts, if a loss or its slope in a
    log-probability is not finite.
    """
    # Groups of similar length need little padding; the sum over the step is the same in any order.
    groups = groups[rows.longest[groups].argsort(kind="stable")]
    step_rows = int((rows.starts[groups + 1] - rows.starts[groups]).sum())
    passes = Passes(engine, objective, world, is_shared, plan.training.pass_tokens)
    of_ranks = [plan.micro_groups(np.arange(len(groups)), rank) for rank in range(world.ranks)]
    marks_K_G = torch.zeros(KINDS, len(groups), dtype=torch.float64, device=world.device)
    sums: dict[str, torch.Tensor] = {}
    for number, parts in enumerate(zip(*of_ranks, strict=True)):
        part, is_last = parts[world.rank], number == plan.accumulation - 1
        share = int((rows.starts[groups[part] + 1] - rows.starts[groups[part]]).sum()) / step_rows
        # A rank with nothing to compute takes another rank's rows at weight zero; non-finite values
        # in them are marked by that rank.
        taken = [groups[other] if len(other) else groups[:1] for other in parts]
        weight = share * plan.accumulation * world.ranks
        judged = passes.accumulate(rows, taken, weight, ends_step=is_last)
        if len(part):
            marks_K_G[:, part] = marks(judged.logps, judged.loss, judged.group, len(part))
        if not is_last:
            # counts the micro-batch; the last one is left to `optimizer_step`
            engine.step()
        for name, value in {"loss": judged.loss.detach(), **judged.metrics}.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + share * value
    names = sorted(sums)
    values = torch.cat([torch.stack([sums[name].double() for name in names]), marks_K_G.ravel()])
    torch.distributed.all_reduce(values)
    refuse_marked(
        values[len(names) :].view(KINDS, -1), [rows.prompt_ids[group] for group in groups], step
    )
    return dict(zip(names, values[: len(names)].tolist(), strict=True))
