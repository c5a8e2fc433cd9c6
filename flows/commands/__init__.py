"""The commands of `wind`, by what they are for."""
