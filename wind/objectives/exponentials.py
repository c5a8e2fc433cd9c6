"""Exponentials of log-ratios that overflow neither in value nor in gradient.

Up to MAX_LOG_RATIO nats they are the plain functions. Beyond it they continue along the tangent, so
that the gradient keeps its sign and its size at the bound. A plain clamp would have no gradient
there, and let a policy that is far off drift on. The bound is where verl clamps, and low enough for
the norm of a gradient, whose squares are summed in float32.
"""

import math
from typing import Final

import torch

MAX_LOG_RATIO: Final = 20.0  # nats; e^20 = 5e8 times as probable


def bounded_exp(log_ratio_B: torch.Tensor) -> torch.Tensor:
    """Return e^x up to x = MAX_LOG_RATIO and its tangent beyond, [B]."""
    return log_ratio_B.clamp(max=MAX_LOG_RATIO).exp() + _beyond(log_ratio_B)


def bounded_expm1(log_ratio_B: torch.Tensor) -> torch.Tensor:
    """Return e^x - 1, extended like `bounded_exp`, [B].

    The result is exact near 0.
    """
    return torch.expm1(log_ratio_B.clamp(max=MAX_LOG_RATIO)) + _beyond(log_ratio_B)


def _beyond(log_ratio_B: torch.Tensor) -> torch.Tensor:
    return math.exp(MAX_LOG_RATIO) * (log_ratio_B - MAX_LOG_RATIO).clamp(min=0)
