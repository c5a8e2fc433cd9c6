"""The store: immutable datasets, models and versions under one root."""
