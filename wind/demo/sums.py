"""The demo task: sums of two two-digit numbers.

People who often slip answer them. A problem is a pair of numbers whose sum has two digits. One
seeded shuffle of all 3240 sets `HELD_OUT` problems aside for the demo prompts; the policy's corpus
and the reward model's preferences are drawn from the rest, so neither model has seen a demo prompt.
A wrong answer is off by a slip of the pen (1 or 2) or by a carry (10).
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from wind.errors import ConfigError, InputError

NUMBERS: Final = range(10, 90)
# sum of a problem
LARGEST: Final = 99
# what a wrong answer adds to the sum
SLIPS: Final = (-10, -2, -1, 1, 2, 10)
# problems kept for prompts
HELD_OUT: Final = 768


class Example(NamedTuple):
    """One row of the corpus: a prompt and somebody's answer."""

    prompt: str
    response: str


class Preference(NamedTuple):
    """One comparison: the rater liked `chosen` better than `rejected`."""

    prompt: str
    chosen: str
    rejected: str


def write_prompts(out: Path, *, seed: int = 0, count: int = 768) -> int:
    """Write `count` demo prompts as JSON lines, and return the count.

    Each has its gold answer and its pair, which is the same for `27+58=` and `58+27=`: these should
    not end up on both sides of a split.
    """
    if not 1 <= count <= HELD_OUT:
        raise ConfigError(f"count is {count}: between 1 and {HELD_OUT} prompts can be held out")
    rows = [
        {
            "prompt": prompt_text(*problem),
            "answer": str(sum(problem)),
            "pair": "+".join(map(str, sorted(problem))),
        }
        for problem in held_out(seed)[:count]
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def prompt_text(first: int, second: int) -> str:
    """Return the problem as the user writes it, such as `27+58=`."""
    return f"{first}+{second}="


def held_out(seed: int) -> list[tuple[int, int]]:
    """Return the problems of the demo prompts, shuffled."""
    return _shuffled(seed)[:HELD_OUT]


def seen(seed: int) -> list[tuple[int, int]]:
    """Return the problems that the models may learn from, shuffled."""
    return _shuffled(seed)[HELD_OUT:]


def corpus(*, seed: int, size: int, wrong_share: float) -> list[Example]:
    """Return `size` answered prompts, of which about `wrong_share` have a slip."""
    problems = seen(seed)
    draw = random.Random(f"corpus {seed} {wrong_share}")
    drawn = (draw.choice(problems) for _ in range(size))
    return [
        Example(
            prompt_text(*problem),
            str(sum(problem) + (draw.choice(SLIPS) if draw.random() < wrong_share else 0)),
        )
        for problem in drawn
    ]


def preferences(
    problems: Sequence[tuple[int, int]], *, seed: int, size: int, flip_share: float
) -> list[Preference]:
    """Return `size` comparisons of two different responses.

    The rater prefers the one closer to the sum, except for a share of slips, `flip_share`.
    """
    draw = random.Random(f"preferences {seed}")
    pairs: list[Preference] = []
    while len(pairs) < size:
        problem = draw.choice(problems)
        better, worse = sorted(
            (_shown(sum(problem), draw) for _ in range(2)),
            key=lambda text: error(text, sum(problem)),
        )
        if error(better, sum(problem)) == error(worse, sum(problem)):
            # equally far from the sum: the rater has no preference
            continue
        if draw.random() < flip_share:
            better, worse = worse, better
        pairs.append(Preference(prompt_text(*problem), better, worse))
    return pairs


def slipped(problems: Sequence[tuple[int, int]]) -> list[Preference]:
    """Compare every problem's sum with every slip of it, always rightly."""
    return [
        Preference(prompt_text(*problem), str(sum(problem)), str(sum(problem) + slip))
        for problem in problems
        for slip in SLIPS
    ]


def error(response: str, answer: int) -> float:
    """Return the distance of the response from the sum.

    A response that is not a plain number is infinitely far.
    """
    return (
        abs(int(response) - answer) if response.isascii() and response.isdigit() else float("inf")
    )


def gold_reward(prompts: list[str], responses: list[str], answers: list[str | None]) -> list[float]:
    """Return 1 for each response that equals its gold answer, else 0."""
    rewards = []
    for prompt, response, answer in zip(prompts, responses, answers, strict=True):
        if answer is None:
            raise InputError(f"prompt {prompt!r} has no gold answer: the gold reward needs one")
        rewards.append(float(response.strip() == answer.strip()))
    return rewards


def _shuffled(seed: int) -> list[tuple[int, int]]:
    problems = [
        (first, second) for first in NUMBERS for second in NUMBERS if first + second <= LARGEST
    ]
    random.Random(f"problems {seed}").shuffle(problems)
    return problems


def _shown(total: int, draw: random.Random) -> str:
    """Return a response for the rater.

    It is the sum, a slip of it, any other number or, seldom, no number at all.
    """
    kind = draw.random()
    if kind < 0.4:
        return str(total)
    if kind < 0.9:
        return str(total + draw.choice(SLIPS))
    if kind < 0.97:
        return str(draw.randrange(LARGEST + 30))
    return "".join(draw.choice("0123456789+=") for _ in range(draw.randrange(5)))
