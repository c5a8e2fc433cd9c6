"""Samples read in a terminal, for a store on a machine that is reached by ssh.

`wind browse` shows what the reading page of `wind ui` shows, from the same `wind.inspection`: prompts
searched, filtered and sorted, their responses with rewards, win rates and ranks, a sample over the
iterations, and a reader's notes and flags.
"""
