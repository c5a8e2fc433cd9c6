"""`python -m wind.generations spec.json`: compute the generations of a spec by hand."""

from wind.stages import main

main("generations")
