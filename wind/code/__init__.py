"""Code identity: this project's modules, and what a user's function used."""
