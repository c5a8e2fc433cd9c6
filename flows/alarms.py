"""Alarms of an iteration."""

from collections.abc import Mapping

from tasks.alarms import raise_alarms, tested_alarms
from tasks.checks import checked
from tasks.run import current_run
from wind.alarms import AlarmsSpec
from wind.config.alarms import AlarmsConfig
from wind.config.recipe import DistillConfig
from wind.store.handles import Dataset


def alarms(
    config: DistillConfig,
    section: AlarmsConfig,
    held_out: Mapping[str, Dataset],
    before: Mapping[str, Dataset],
) -> Dataset:
    """Test the evaluation `held_out` against the opponent and the iteration `before`.

    Prints the alarms that are raised.
    """
    spec = AlarmsSpec(
        evaluation=held_out["evaluation"],
        matches=held_out.get("matches"),
        evaluation_before=before.get("evaluation"),
        matches_before=before.get("matches"),
        against=config.evaluation.against,
        alarms=section,
    )
    tested = checked(raise_alarms(spec))
    here = current_run()
    for name, said in ({} if here.planning else tested_alarms(tested)).items():
        if said:
            here.terminal.line(f"  alarm: {name}, {said}")
    return tested
