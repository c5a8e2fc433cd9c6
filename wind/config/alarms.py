"""Alarms about a reward that rises while the policy does not get better."""

from pydantic import Field

from wind.config.base import Section
from wind.config.checks import Share


class AlarmsConfig(Section):
    """Tests of every iteration, on the held-out prompts."""

    # the most false alarms of each family, per iteration, where there is nothing to find
    level: float = Field(0.025, gt=0, lt=0.5)
    # of the training reward's gain: as much of it has to show under every other judge
    share: Share = 0.5
    # of the mean response length, relative, up or down: less of a change explains nothing
    length_change: float = Field(0.2, gt=0, lt=1)
