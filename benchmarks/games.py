"""Benchmark exact games: python benchmarks/games.py [--prompts N] [--beta B] ...

The options are --prompts, --responses, --iterations, --solved and --beta. Times the exact WIND
update on random rewards, iterated from the reference, and the solution of the same games for some
of the prompts; prints both, and the distance of the iterate from its solution.
"""

import argparse
import time
from collections.abc import Callable

import torch

from wind.games import RewardPreferences, kl, solve, wind_update


def main() -> None:
    """Iterate, solve, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--responses", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--solved", type=int, default=400)
    parser.add_argument("--beta", type=float, default=0.1)
    arguments = parser.parse_args()
    beta, generator = arguments.beta, torch.Generator().manual_seed(0)
    shape = arguments.prompts, arguments.responses
    rewards_P_Y, logits_P_Y = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    ref_P_Y = logits_P_Y.log_softmax(-1)

    def iterated() -> torch.Tensor:
        preferences, logp_P_Y = RewardPreferences.of(rewards_P_Y), ref_P_Y
        for _ in range(arguments.iterations):
            logp_P_Y = wind_update(logp_P_Y, ref_P_Y, preferences, beta=beta, eta=4 * beta)
        return logp_P_Y

    def solved() -> torch.Tensor:
        some = slice(arguments.solved)
        return solve(ref_P_Y[some], RewardPreferences.of(rewards_P_Y[some]), beta=beta)

    seconds, logp_P_Y = timed(iterated)
    print(
        f"{shape[0]} prompts x {shape[1]} responses, beta = {beta}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{arguments.iterations} exact updates   {seconds:7.2f} s")
    seconds, solution_P_Y = timed(solved)
    print(f"{len(solution_P_Y)} games solved      {seconds:7.2f} s")
    distance = float(kl(solution_P_Y, logp_P_Y[: len(solution_P_Y)]).max())
    print(f"KL to the solution   {distance:.1e} nats at most")


def timed(compute: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Return the seconds that `compute` takes, and its result."""
    began = time.monotonic()
    result = compute()
    return time.monotonic() - began, result


if __name__ == "__main__":
    main()
