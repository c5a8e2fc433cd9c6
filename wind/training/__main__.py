"""Train by hand: `python -m wind.training spec.json`."""

from wind.stages import main

if __name__ == "__main__":
    main("training")
