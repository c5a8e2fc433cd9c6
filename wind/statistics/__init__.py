"""Statistics: intervals, length control, and ratings, as functions of arrays.

They know neither datasets nor stages. All of them are deterministic: what is drawn at random comes
from a generator that the caller seeds.
"""
