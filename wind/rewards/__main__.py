"""`python -m wind.rewards spec.json`: compute the rewards of a spec by hand."""

from wind.stages import main

if __name__ == "__main__":
    main("rewards")
