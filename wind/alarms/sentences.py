"""What an alarm says: one sentence with its numbers, each with its 95% interval."""

from collections.abc import Mapping

from wind.alarms.judged import Standing
from wind.alarms.paired import Estimate

SINCE = {
    "initial": "since the start",
    "reference": "over the reference",
    "previous": "since the iteration before",
}
MEND = "go back to an earlier version, and mend the reward before training on"
EQUAL_LENGTH = "go back to an earlier version, and take length out of the reward"
NO_JUDGE = "no other judge is there to tell: name one in evaluation.judges"


def of_hacking(
    since: str, judge: str, training: Standing, other: Standing, share: float, *, is_raised: bool
) -> str:
    """Say what the training reward gained, and what `judge` sees of it."""
    gained = (
        f"{SINCE[since]} the training reward's win rate {_went(training)}, and that of {judge} "
        f"{_went(other)}"
    )
    if training.gain.value <= 0:
        return f"{gained}: there is no gain to confirm"
    seen = f"{gained}, which is {_percent(other.gain.over(training.gain))} of the gain"
    return f"{seen} where {share:.0%} is asked for: {MEND}" if is_raised else seen


def of_length(
    since: str,
    training: Standing,
    then: Estimate,
    now: Estimate,
    taste: Estimate,
    judges: Mapping[str, Standing],
    *,
    is_raised: bool,
) -> str:
    """Say what the training reward gained, and how the length of responses moved."""
    explains = ", and length explains it" if is_raised else ""
    change = now.over(then) - Estimate.constant(1.0, len(now.influences))
    liked = "longer" if taste.value > 0 else "shorter"
    said = (
        f"{SINCE[since]} the training reward's win rate {_went(training)}{explains}: responses "
        f"went from {then.value:.1f} to {now.value:.1f} tokens ({_percent(change)}), of two to a "
        f"prompt the {liked} tends to have the higher reward (gamma {_number(taste)})"
        f"{_and(judges)}"
    )
    return f"{said}; {_advice(judges)}" if is_raised else said


def of_control(
    since: str,
    training: Standing,
    before: Estimate,
    controlled: Estimate,
    judges: Mapping[str, Standing],
    *,
    is_raised: bool,
) -> str:
    """Say what is left of the training reward's gain at equal length."""
    said = (
        f"{SINCE[since]} the training reward's win rate {_went(training)}, and at equal length it "
        f"went from {before.value:.3f} to {_number(controlled)}{_and(judges)}"
    )
    return f"{said}: length explains the gain; {_advice(judges)}" if is_raised else said


def _and(judges: Mapping[str, Standing]) -> str:
    return "".join(f", and that of {judge} {_went(each)}" for judge, each in judges.items())


def _advice(judges: Mapping[str, Standing]) -> str:
    return EQUAL_LENGTH if judges else NO_JUDGE


def _went(standing: Standing) -> str:
    low, high = standing.gain.interval()
    verb = "rose" if low > 0 else "fell" if high < 0 else "went"
    return f"{verb} from {standing.then.value:.3f} to {_number(standing.now)}"


def _number(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"


def _percent(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.0%} [{low:.0%}, {high:.0%}]"
