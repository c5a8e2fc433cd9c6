"""Run several recipes, or one under several settings, and compare them.

They are ordinary runs, one after the other. All share one store, so that what two of them have in
common (the samples of the first iteration, their rewards, the evaluation of the initial policy) is
computed once; and one pool of workers, so that engines are imported once.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefect import flow

from flows.distill import distill
from flows.evaluate import Evaluator, Policies
from flows.grid import Cell
from tasks.checks import checked
from tasks.comparison import tabulate_comparison
from tasks.run import Event, current_run, keep_config, open_run
from tasks.sources import import_prompts, import_reward
from wind.comparison import ComparisonSpec, Iteration
from wind.comparison.seed_averages import best_setting
from wind.config.recipe import DistillConfig
from wind.errors import WindError
from wind.store.handles import Dataset
from wind.store.versions import Version


@dataclass(frozen=True)
class FinishedRun:
    """One finished run of a study."""

    cell: Cell
    seed: int
    # metrics of the policy it began with, against itself
    initial: Dataset
    versions: Sequence[Version]
    events: Sequence[Event]

    def iterations(self) -> Iterator[Iteration]:
        """Yield the datasets of every iteration, as the comparison reads them."""
        run = {"recipe": self.cell.recipe, "setting": self.cell.setting, "seed": self.seed}
        yield Iteration.model_validate(run | {"iteration": 0, "metrics": self.initial})
        for version in self.versions:
            datasets = version.content.datasets
            sampled = {
                noun: datasets.get("rollouts", datasets.get(noun))
                for noun in ("generations", "rewards")
            }
            counted = (
                run
                | sampled
                | {"iteration": version.content.iteration, "metrics": datasets["metrics"]}
            )
            yield Iteration.model_validate(counted)

    def win_rate(self) -> float:
        """Return the win rate of the last iteration."""
        return float(self.versions[-1].metrics["win_rate"]["value"])


@dataclass(frozen=True)
class Study:
    """The results of all runs."""

    comparison: Dataset
    runs: Sequence[FinishedRun]
    # runs of the chosen settings whose seed was not used to choose
    reported: Sequence[FinishedRun]

    def outcomes(self) -> Counter[str]:
        """Count the datasets that the runs computed or found cached."""
        return Counter(event.outcome for run in self.runs for event in run.events)


@flow(name="study", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def study(name: str, trials: Sequence[Sequence[Cell]], seeds: Sequence[int]) -> Study:
    """Run each cell with each seed, and tabulate their metrics.

    A recipe with several cells is tried with all of them on the first seed, and only the one with
    the highest final win rate on the others. The seed that chose is not reported: that would report
    the luckiest setting.
    """
    done: list[FinishedRun] = []
    reported: list[FinishedRun] = []
    total = sum(len(cells) + len(seeds) - 1 for cells in trials)

    def finish(cell: Cell, seed: int) -> FinishedRun:
        current_run().terminal.line(f"run {len(done) + 1} of {total}: {cell.seeded(seed).run}")
        done.append(_run(cell, seed))
        return done[-1]

    for cells in trials:
        tried = {cell.setting: finish(cell, seeds[0]) for cell in cells}
        chosen = tried[best_setting({setting: run.win_rate() for setting, run in tried.items()})]
        rest = [finish(chosen.cell, seed) for seed in seeds[1:]]
        reported += rest if len(cells) > 1 else [chosen, *rest]
    iterations = tuple(each for run in done for each in run.iterations())
    comparison = checked(tabulate_comparison(ComparisonSpec(iterations=iterations)))
    return Study(comparison, done, reported)


def _run(cell: Cell, seed: int) -> FinishedRun:
    config, around = cell.seeded(seed), current_run()
    try:
        with open_run(config, pool=around.pool, quiet=around.terminal.console.quiet) as here:
            keep_config(here.store, config)
            versions = distill(here.config)
            initial = _measure_initial(here.config, versions[0])
            return FinishedRun(cell, seed, initial, versions, here.events)
    except WindError as error:
        raise type(error)(f"run {config.run}: {error}") from error


def _measure_initial(config: DistillConfig, first: Version) -> Dataset:
    """Measure the run's initial policy against itself.

    The result is the same for every run under its conditions.
    """
    initial, prompts = first.content.model_in, first.content.datasets["prompts"]
    reward = import_reward(config.reward)
    asked = import_prompts(config.prompts, initial, config.seed)
    evaluator = Evaluator.of(config, asked, prompts, reward)
    held_out = evaluator.evaluate(0, initial, Policies.only(initial))
    return evaluator.measure(0, held_out)
