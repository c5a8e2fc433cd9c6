"""Imported by the process that ranks are forked from, and by no other: it ends with the process that started it.

multiprocessing's own way, a pipe that every child holds open, would keep it for as long as a rank lives.
"""

import os

from wind.lifeline import die_with

die_with(os.getppid())
