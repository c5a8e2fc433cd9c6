"""`python -m wind.prompts spec.json`."""

from wind.stages import main

if __name__ == "__main__":
    main("prompts")
