"""What a user may set: a recipe and its sections."""
