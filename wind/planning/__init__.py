"""What a run will take, worked out before it: seconds, memory, disk.

`shapes` counts what a model of a config has and does, `hardware` says what a device gives, `rates`
turns both into seconds per token, on a CPU from a probe of the stages' own code, and `work` and
`memory` add up the stages of an iteration. Every constant that is neither counted nor measured has
its reason beside it.
"""
