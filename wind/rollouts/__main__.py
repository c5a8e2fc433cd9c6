"""Sample and train by hand: `python -m wind.rollouts spec.json`."""

from wind.stages import main

if __name__ == "__main__":
    main("rollouts")
