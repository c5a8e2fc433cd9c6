"""Whose code computed what: this project's modules, and what a user's function was seen to use."""
