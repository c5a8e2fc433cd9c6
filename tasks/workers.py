"""Worker processes for heavy stages.

Heavy stages run in processes of their own so that they can be killed and measured. A pool starts
processes `python -m wind.stages.worker` on demand, keeps them warm, hands shards to whichever is
free, and raises their errors again as this project's own. A worker and everything it started die
with this process, however this process dies. Requests and answers travel on pipes of their own:
standard input is empty, and printed output goes to the log.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from wind.config.runs import WorkersConfig
from wind.errors import StageError, by_name, killed_by
from wind.machine import processes
from wind.redaction import redacted_lines
from wind.stages import AHEAD, Find, Job, WorkerKind, missing_shards, parse, publish, stage_named
from wind.store.handles import Dataset

LOG_LINES = 5
# Time for a dead process's last lines to arrive: one of its children may still hold the pipe.
LOG_SECONDS = 2.0


def kind_of(job: Job) -> WorkerKind | None:
    """Return the kind of worker that computes `job`.

    None for a light stage, which a run computes in its own process.
    """
    stage = stage_named(job.stage)
    return stage.worker(stage.spec.model_validate(job.spec))


class Worker:
    """A warm worker process."""

    def __init__(self, python: str, log: Path, environment: Mapping[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        kept = log.open("ab", buffering=0)
        (asked, requests), (answers, answering) = os.pipe(), os.pipe()
        try:
            self._process = processes.start(
                processes.python(
                    "-m", "wind.stages.worker", str(asked), str(answering), interpreter=python
                ),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(asked, answering),
                descendants=True,
            )
        except OSError as error:
            os.close(requests)
            os.close(answers)
            kept.close()
            raise StageError(
                f"no worker can be started by {python} ({error.strerror}): set workers.python"
            ) from error
        finally:
            os.close(asked)  # held by the worker alone, so that its end is noticed
            os.close(answering)
        self._requests = os.fdopen(requests, "w", encoding="utf-8")
        self._answers = os.fdopen(answers, encoding="utf-8")
        self._logging = threading.Thread(target=self._keep_log, args=(kept,), daemon=True)
        self._logging.start()

    def compute(self, job: Job, shard: int, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Have the worker compute a shard.

        Returns its seconds and its peak memory in bytes. Raises the error that the worker met, or
        StageError if the worker died.
        """
        try:
            request = {"job": job.model_dump(mode="json"), "shard": shard, "folder": os.getcwd()}
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._died(job) from None
        for line in self._answers:
            message = json.loads(line)
            if "progress" in message:
                progress(*message["progress"])
            elif "error" in message:
                raise by_name(message["error"]["kind"], message["error"]["message"])
            else:
                done: dict[str, Any] = message["done"]
                return done
        raise self._died(job)

    def alive(self) -> bool:
        """Return whether the process is still running."""
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the process and everything it started, and reap it."""
        self._process.end()
        self._logging.join(LOG_SECONDS)
        for stream in (self._requests, self._answers):
            # The process may not have read the last request.
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _keep_log(self, log: IO[bytes]) -> None:
        """Copy the process's output to `log`, line by line, without secrets."""
        assert self._process.stdout is not None
        with self._process.stdout as said, log:
            for line in redacted_lines(said):
                # The disk may be full. An unread pipe would fill up and block the process.
                with contextlib.suppress(OSError):
                    log.write(line.encode())

    def _died(self, job: Job) -> StageError:
        code = self._process.wait()
        self._logging.join(LOG_SECONDS)
        how = killed_by(-code) if code < 0 else f"ended with exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        said = " | ".join(line.strip() for line in lines if line.strip()) or "it said nothing"
        return StageError(
            f"the worker of {job.stage} {how}; rerun to go on from its finished shards. Last "
            f"words in {self._log}: {said}"
        )


class Pool:
    """The warm workers of one run.

    There are `workers.processes` of each kind, started when first needed.
    """

    def __init__(self, config: WorkersConfig, device: str, logs: Path) -> None:
        self._config = config
        self._device = device
        self._logs = logs
        self._workers: dict[tuple[WorkerKind, int], Worker] = {}

    def compute(
        self,
        job: Job,
        kind: WorkerKind,
        progress: Callable[[float, float], None],
        find: Find | None = None,
    ) -> Dataset:
        """Compute the missing shards of `job` and publish its dataset.

        The shards are computed by the workers. If `find` returns a dataset once the lock is held,
        that dataset is returned instead.
        """
        started = time.time()
        stage, _, store = parse(job)
        with store.partial(stage.name, job.key()) as partial:
            if find is not None and (found := find(job)) is not None:
                return found
            missing = missing_shards(job, partial)
            self._make_room(kind)
            peak = self._compute_shards(job, kind, missing, progress)
            if self._config.keep_warm == "never":
                self.close()
            return publish(job, partial, started, peak_memory_bytes=peak)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _compute_shards(
        self,
        job: Job,
        kind: WorkerKind,
        missing: Sequence[int],
        progress: Callable[[float, float], None],
    ) -> int:
        """Compute the `missing` shards and return the workers' peak memory in bytes."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for shard in missing:
            waiting.put(shard)
        count = Count(len(missing))
        processes = min(self._config.processes, len(missing))
        failed = threading.Event()
        with ThreadPoolExecutor(max(1, processes)) as threads:
            lanes = [
                threads.submit(self._lane, job, kind, index, waiting, count, failed)
                for index in range(processes)
            ]
            try:
                while (
                    wait(lanes, timeout=0.2, return_when=FIRST_EXCEPTION).not_done
                    and not failed.is_set()
                ):
                    progress(count.done(), count.total)
                return max((lane.result() for lane in lanes), default=0)
            except BaseException:
                # Do not wait for sibling shards: they would be thrown away or recomputed anyway.
                failed.set()
                self.close()
                raise

    def _lane(
        self,
        job: Job,
        kind: WorkerKind,
        index: int,
        waiting: "queue.SimpleQueue[int]",
        count: "Count",
        failed: threading.Event,
    ) -> int:
        peak = 0
        ours: deque[int] = deque()
        while not failed.is_set():
            # the shard to compute, and its share of those that a worker may begin
            more = 1 + min(AHEAD, waiting.qsize() // self._config.processes)
            with contextlib.suppress(queue.Empty):
                while len(ours) < more:
                    ours.append(waiting.get_nowait())
            if not ours:
                break
            shard = ours.popleft()
            try:
                worker = self._worker(kind, index)
                done = worker.compute(job.ahead_of(ours), shard, count.within(shard))
            except BaseException:
                failed.set()
                raise
            peak = max(peak, done["peak_memory_bytes"])
            count.within(shard)(1, 1)
        return peak

    def _worker(self, kind: WorkerKind, index: int) -> Worker:
        python = self._config.python.get(kind, sys.executable)
        if (
            kind == "training"
            and self._device == "cpu"
            and python == self._config.python.get("transformers", sys.executable)
        ):
            # Importing an engine takes longer than many stages do. On a GPU, each engine has a
            # process of its own, which returns its memory when it ends.
            kind = "transformers"
        worker = self._workers.get((kind, index))
        if worker is not None and not worker.alive():
            worker.close()
            worker = None
        if worker is None:
            log = self._logs / f"{kind}-{index}.log"
            worker = self._workers[kind, index] = Worker(
                python, log, self._environment(kind, index, python)
            )
        return worker

    def _environment(self, kind: WorkerKind, index: int, python: str) -> dict[str, str]:
        """Return the environment for worker `index` of `kind`.

        `python` is the interpreter that the worker runs under.
        """
        changes = {
            "HF_HUB_OFFLINE": "1",  # everything a stage needs is in the store
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            # Tools beside the interpreter, even if the environment is not activated: vLLM compiles
            # with ninja.
            "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)]),
        }
        if self._device == "cpu":
            changes |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        elif kind != "training" and self._config.processes > 1:
            # Training is exempt, since it spreads its ranks over all devices.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = (
                visible.split(",")
                if visible
                else [str(number) for number in range(self._config.processes)]
            )
            changes["CUDA_VISIBLE_DEVICES"] = names[index]
        return processes.environment(**changes)

    def _make_room(self, kind: WorkerKind) -> None:
        """On a GPU, end the workers of every other kind.

        Exiting is the only reliable way to free GPU memory.
        """
        if self._device == "cuda" and self._config.keep_warm != "always":
            for other in [place for place in self._workers if place[0] != kind]:
                self._workers.pop(other).close()


class Count:
    """Joint progress of several workers.

    Finished shards count in full, and unfinished ones in part.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._parts: dict[int, float] = {}

    def within(self, shard: int) -> Callable[[int, int], None]:
        """Return the progress function of one shard."""

        def progress(done: int, total: int) -> None:
            self._parts[shard] = done / max(total, 1)

        return progress

    def done(self) -> float:
        """Return how many shards are done, parts included."""
        return round(sum(list(self._parts.values())), 2)
