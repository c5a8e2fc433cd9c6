"""The settings of a run: a recipe and its sections."""
