"""Test whether the reward rises while the policy does not get better."""

from tasks.caching import dataset_task
from tasks.run import current_run
from tasks.stages import compute
from wind.alarms import AlarmsSpec
from wind.store.handles import Dataset


@dataset_task
def raise_alarms(spec: AlarmsSpec) -> Dataset:
    """Test the iteration against earlier policies.

    One row is one test.
    """
    return compute("alarms", spec)


def tested_alarms(alarms: Dataset | None) -> dict[str, str | None]:
    """Return what each alarm says, None if it was not raised.

    Empty without alarms.
    """
    rows = current_run().store.read(alarms).to_pylist() if alarms else []
    return {row["alarm"]: row["message"] if row["is_raised"] else None for row in rows}
