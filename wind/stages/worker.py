"""A stage worker, which computes shards for a run.

It reads one JSON line per shard and answers with a few JSON lines:

    in    {"job": {...}, "shard": 3, "folder": "/home/me"}
    out   {"progress": [64, 512]} ...
          then {"done": {"seconds": 1.2, "peak_memory_bytes": 1}}
          or {"error": {"kind": "InputError", "message": "..."}}

It stays warm between shards, stages, and iterations: loaded models live as long as the process. It
works in the folder of the run, where the user's modules are. Its arguments are the descriptors of
both pipes, which no program that a stage starts inherits. Standard input is empty, and anything
printed goes to the log.
"""

import json
import os
import sys
import time
import traceback
from typing import IO, Any

from wind.errors import WindError
from wind.stages import Job, compute_shard
from wind.store.provenance import peak_memory, reset_peak_memory


def main() -> None:
    """Serve requests until their pipe closes.

    Usage: `python -m wind.stages.worker REQUESTS ANSWERS`.
    """
    asked, answering = map(int, sys.argv[1:])
    for descriptor in (asked, answering):
        os.set_inheritable(descriptor, False)
    with (
        os.fdopen(asked, encoding="utf-8") as requests,
        os.fdopen(answering, "w", encoding="utf-8") as answers,
    ):
        for line in requests:
            request = json.loads(line)
            _serve(Job.model_validate(request["job"]), request["shard"], request["folder"], answers)


def _serve(job: Job, shard: int, folder: str, protocol: IO[str]) -> None:
    started = time.monotonic()
    told = started
    reset_peak_memory()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            _say(protocol, progress=[done, total])

    try:
        os.chdir(folder)
        compute_shard(job, shard, progress)
    except WindError as error:
        _say(protocol, error={"kind": type(error).__name__, "message": str(error)})
    except OSError as error:
        _say(
            protocol,
            error={
                "kind": "StageError",
                "message": f"{job.stage} could not read or write: {error}",
            },
        )
    except Exception as error:  # the process boundary: whatever it is, the run must be told
        traceback.print_exc()
        _say(
            protocol,
            error={
                "kind": "StageError",
                "message": f"{job.stage} failed: {type(error).__name__}: {error}",
            },
        )
    else:
        _say(
            protocol,
            done={"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()},
        )


def _say(protocol: IO[str], **message: Any) -> None:
    protocol.write(json.dumps(message) + "\n")
    protocol.flush()


if __name__ == "__main__":
    main()
