"""A stage worker: a process that computes shards for a run, one JSON line in and a few JSON lines out.

    in    {"job": {...}, "shard": 3}
    out   {"progress": [64, 512]} ...   then   {"done": {"seconds": 1.2, "peak_memory_bytes": 1}}   or
          {"error": {"kind": "InputError", "message": "..."}}

It stays warm between shards, stages and iterations: loaded models live as long as the process. Standard input is also its
lifeline: when the run that started it is gone, however it died, the pipe closes and the worker kills its process group.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import IO, Any

from wind.errors import WindError
from wind.provenance import peak_memory, reset_peak_memory
from wind.stages import Job, compute_shard


def main() -> None:
    """Serve requests from standard input until it closes."""
    # Libraries print to standard output; the protocol keeps a descriptor of its own.
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        _serve(Job.model_validate(request["job"]), request["shard"], protocol)


def _serve(job: Job, shard: int, protocol: IO[str]) -> None:
    started = time.monotonic()
    told = started
    reset_peak_memory()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            _say(protocol, progress=[done, total])

    try:
        compute_shard(job, shard, progress)
    except WindError as error:
        _say(protocol, error={"kind": type(error).__name__, "message": str(error)})
    except OSError as error:
        _say(protocol, error={"kind": "StageError", "message": f"{job.stage} could not read or write: {error}"})
    except Exception as error:  # the boundary of the process: whatever it was, the run must be told
        traceback.print_exc()
        _say(protocol, error={"kind": "StageError", "message": f"{job.stage} failed: {type(error).__name__}: {error}"})
    else:
        _say(protocol, done={"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory()})


def _say(protocol: IO[str], **message: Any) -> None:
    protocol.write(json.dumps(message) + "\n")
    protocol.flush()


def _read(requests: "queue.SimpleQueue[str]") -> None:
    """Pass lines on; at the end of input the run is gone, and so must be everything that was started for it."""
    for line in sys.stdin:
        requests.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
