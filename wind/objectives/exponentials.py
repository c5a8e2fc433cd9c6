"""Exponentials of log-ratios that overflow neither in their value nor in their gradient.

Up to MAX_LOG_RATIO nats they are what they are called. Beyond it they go on along their tangent, so
that the gradient keeps its sign and its size at the bound: a plain clamp would give none, and let a
policy that is far off drift on. The bound is where verl clamps, and low enough for the norm of a
gradient, whose squares are summed in float32.
"""

import math
from typing import Final

import torch

MAX_LOG_RATIO: Final = 20.0  # nats; e^20 = 5e8 times as probable


def bounded_exp(log_ratio_B: torch.Tensor) -> torch.Tensor:
    """e^x up to x = MAX_LOG_RATIO, its tangent there beyond, [B]."""
    return log_ratio_B.clamp(max=MAX_LOG_RATIO).exp() + _beyond(log_ratio_B)


def bounded_expm1(log_ratio_B: torch.Tensor) -> torch.Tensor:
    """e^x - 1 up to x = MAX_LOG_RATIO, its tangent there beyond, [B]; exact near 0."""
    return torch.expm1(log_ratio_B.clamp(max=MAX_LOG_RATIO)) + _beyond(log_ratio_B)


def _beyond(log_ratio_B: torch.Tensor) -> torch.Tensor:
    return math.exp(MAX_LOG_RATIO) * (log_ratio_B - MAX_LOG_RATIO).clamp(min=0)
