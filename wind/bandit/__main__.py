"""`python -m wind.bandit spec.json`: compute the bandit of a spec by hand."""

from wind.stages import main

if __name__ == "__main__":
    main("bandit")
