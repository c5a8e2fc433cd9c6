"""What an auditor asks of a store: is it intact, how was it made, what changed, does it reproduce."""
