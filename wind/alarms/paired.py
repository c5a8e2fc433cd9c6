"""Estimates over prompts that can be compared with each other, and their tests.

An estimate keeps what each prompt contributes to its error. So two estimates on the same prompts
have a difference with the right error, whatever their correlation. Errors are first-order (the
delta method), as those of a ratio of two sums over sampled clusters are (Cochran, Sampling
Techniques, chapter 6): with R = sum a / sum b, prompt i contributes (a_i - R b_i) / mean b. Tests
and intervals are Student's, with one degree of freedom less than there are prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95  # of an interval
# Signs of n prompts cannot tell more than 2^-n; more of them are not told apart.
MOST_SIGNS = 40
ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A number estimated over prompts."""

    value: float
    influences: Floats  # [P], of each prompt, with mean zero

    @classmethod
    def ratio(cls, numerators_P: Floats, denominators_P: Floats) -> Self:
        """Estimate the ratio of two sums over prompts; 0 where there is nothing to divide by."""
        mean = float(denominators_P.mean()) if len(denominators_P) else 0.0
        if mean == 0:
            return cls(0.0, np.zeros(len(denominators_P)))
        value = float(numerators_P.sum() / denominators_P.sum())
        return cls(value, (numerators_P - value * denominators_P) / mean)

    @classmethod
    def constant(cls, value: float, prompts: int) -> Self:
        """Return a number that is known."""
        return cls(value, np.zeros(prompts))

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value + other.value, self.influences + other.influences)

    def __sub__(self, other: "Estimate") -> "Estimate":
        return self + other * -1.0

    def __mul__(self, factor: float) -> "Estimate":
        return Estimate(self.value * factor, self.influences * factor)

    def over(self, other: "Estimate") -> "Estimate":
        """Estimate the ratio to `other`, which is not 0."""
        ratio = self.value / other.value
        return Estimate(ratio, (self.influences - ratio * other.influences) / other.value)

    def error(self) -> float:
        """Return the standard error."""
        prompts = len(self.influences)
        if prompts < 2:
            return 0.0
        return float(np.sqrt((self.influences**2).sum() / (prompts * (prompts - 1))))

    def test(self) -> "Evidence":
        """Test that the number is above 0."""
        from scipy.special import stdtr, stdtrit  # takes a while to import

        prompts, error = len(self.influences), self.error()
        if prompts < 2:
            return Evidence(0.0, 1.0)
        least = 2.0 ** -min(prompts, MOST_SIGNS)
        if error < ROUNDING:
            is_above = self.value > ROUNDING
            return (
                Evidence(-float(stdtrit(prompts - 1, least)), least)
                if is_above
                else Evidence(0.0, 1.0)
            )
        statistic = self.value / error
        return Evidence(statistic, max(float(stdtr(prompts - 1, -statistic)), least))

    def interval(self) -> tuple[float, float]:
        """Return the ends of the 95% interval; the number itself from fewer than two prompts."""
        from scipy.special import stdtrit  # takes a while to import

        prompts = len(self.influences)
        width = float(stdtrit(prompts - 1, (1 + LEVEL) / 2)) * self.error() if prompts > 1 else 0.0
        return self.value - width, self.value + width


@dataclass(frozen=True)
class Evidence:
    """Result of a one-sided test."""

    statistic: float  # Student's t
    p_value: float


def all_of(*tests: Evidence) -> Evidence:
    """Test that all alternatives hold: the weakest of the tests decides.

    An intersection-union test, which needs no correction (Berger, Technometrics 24, 1982).
    """
    return max(tests, key=lambda test: test.p_value)


def holm(tests: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """Correct the p-values of tests that are made together.

    No more than the level of the tests is the chance of any false alarm among them (Holm,
    Scandinavian Journal of Statistics 6, 1979).
    """
    corrected: dict[str, Evidence] = {}
    largest = 0.0
    ordered = sorted(tests.items(), key=lambda item: item[1].p_value)
    for place, (name, test) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(tests) - place) * test.p_value))
        corrected[name] = Evidence(test.statistic, largest)
    return {name: corrected[name] for name in tests}
