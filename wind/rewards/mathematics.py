r"""Comparison of mathematical answers by math-verify, for the reward `math` and others.

`equivalence` serves as `evaluation.match` and as `reward.function`. An answer is right if it equals
the gold answer as mathematics: 1/2 is 0.5 and \frac{1}{2}, and x + 1 is 1 + x. The gold answer is
what follows `####`, if that is in it, and may be LaTeX without any delimiter. The response's answer
is where math-verify looks for one: in \boxed{}, after words such as "the answer is", or at last the
last number or formula.

Expressions may be written to run forever or to fill the memory, in code that no signal handler
interrupts. So they are read and compared in forked processes with limits of CPU time and memory for
each response; one that ends its process costs itself, and no other.
"""

import logging
import os
import re
import resource
import signal
import traceback
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

# of CPU time, for one response
SECONDS: Final = 5.0
# beyond what the process has when it begins
BYTES: Final = 2 << 30
WRONG, RIGHT, UNPARSED, NO_GOLD = range(4)

# math that is marked as such
DELIMITED: Final = re.compile(r"\$.+\$|\\\(.+\\\)|\\\[.+\\\]|\\boxed\b", re.DOTALL)


def equivalence(prompts: list[str], responses: list[str], answers: list[str | None]) -> list[float]:
    """Return 1 for each response whose answer equals the gold answer, else 0.

    Raises ValueError for a gold answer that is missing or cannot be read.
    """
    return verdicts(prompts, responses, answers)["reward"]


def verdicts(
    prompts: list[str], responses: list[str], answers: list[str | None]
) -> dict[str, list[float]]:
    """Return the columns `reward`, as `equivalence` does, and `unparsed`.

    `unparsed` is 1 for a response without an answer that could be read and compared within the
    limits.
    """
    read = _judged(responses, answers)
    for answer, verdict in zip(answers, read, strict=True):
        if verdict == NO_GOLD:
            raise ValueError(
                f"the gold answer {answer!r} is no mathematics: set prompts.answer_field"
            )
    return {
        "reward": [float(verdict == RIGHT) for verdict in read],
        "unparsed": [float(verdict == UNPARSED) for verdict in read],
    }


def _judged(responses: Sequence[str], answers: Sequence[str | None]) -> list[int]:
    """Return a verdict for each response.

    A process judges one after the other; where it ends early, the next one begins behind.
    """
    # before any process is forked, which then has it loaded
    import math_verify  # noqa: F401

    made: list[int] = []
    while len(made) < len(responses):
        begin = len(made)
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _judge_in_fork(responses[begin:], answers[begin:], theirs)
        os.close(theirs)
        with os.fdopen(ours, "rb") as file:
            made += file.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and len(made) < len(responses):
            made.append(UNPARSED)
        elif len(made) < len(responses):
            raise RuntimeError("a process that compares answers failed: its log says how")
    return made


def _judge_in_fork(
    responses: Sequence[str], answers: Sequence[str | None], descriptor: int
) -> NoReturn:
    code = 1
    try:
        _judge(responses, answers, descriptor)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _judge(responses: Sequence[str], answers: Sequence[str | None], descriptor: int) -> None:
    """Write one byte per response, in order."""
    # what is limited is the address space: that of a process includes what it has mapped
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # it warns that it has no limit of its own
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with os.fdopen(descriptor, "wb", buffering=0) as pipe:
        for response, answer in zip(responses, answers, strict=True):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            verdict = _verdict(response, answer)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.write(bytes([verdict]))


def _verdict(response: str, answer: str | None) -> int:
    from math_verify import verify

    try:
        if not (gold := _gold(answer or "")):
            return NO_GOLD
        if not (given := _parsed(response)):
            return UNPARSED
        return RIGHT if verify(gold, given, timeout_seconds=None) else WRONG
    except Exception:  # whatever a parser of foreign text may raise, out of memory included
        return UNPARSED


@lru_cache(maxsize=64)
def _gold(answer: str) -> list[Any]:
    text = answer.rpartition("####")[2].strip()
    if not text:
        return []
    return _parsed(text if DELIMITED.search(text) else rf"\boxed{{{text}}}")


def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))
