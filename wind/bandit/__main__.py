"""Compute the bandit of a spec by hand: `python -m wind.bandit spec.json`."""

from wind.stages import main

if __name__ == "__main__":
    main("bandit")
