"""Where trials take place: warm processes, the shim, an S3 server behind a proxy, and what
uninterrupted runs made.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import yaml

from flows.server import QUIET, EmbeddedServer
from tests.chaos.processes import ROOT, Ended, Nursery, Running
from tests.chaos.proxy import Proxy
from tests.chaos.shim import Action, Counts, Operation, Shim
from tests.conftest import s3_environment, save_tiny_model, serving_s3
from tests.flows.conftest import write_recipe
from wind.store.datasets import Store

RUN = "tiny"
DATASET = re.compile(r"datasets/[a-z_.]+/[0-9a-f]{64}/manifest\.json")
PER_DATASET = 3  # operations on names that publishing one takes: of its lock and of itself
# Named by the machine, its environment and the checkout; no collection removes them.
OF_THE_MACHINE = re.compile(r"^(environments|patches)/|/logs/")


class NotSurvivedError(Exception):
    """A fault was not survived."""


@dataclass(frozen=True)
class Baseline:
    """What an uninterrupted run made."""

    ids: tuple[str, ...]  # of its versions, in order
    names: frozenset[str]  # of all files below the root after a collection
    counts: Counts  # of its operations below the root
    requests: int  # to the object store
    seconds: float


@dataclass(frozen=True)
class Left:
    """A kept copy of a root."""

    root: Path
    share: float  # of the run that is done


@dataclass
class Place:
    """A folder with a recipe, and the root of its run."""

    folder: Path
    root: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def config(self, **overrides: Any) -> None:
        """Change the recipe."""
        path = self.folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | overrides))

    @property
    def local(self) -> Path:
        """The root as a folder."""
        return self.folder / "store"

    def names(self) -> frozenset[str]:
        """All files below the root, but for those of the machine, and all empty folders that are
        named for something.
        """
        found = {entry.name for entry in Store(self.root).storage.files("")}
        for pattern in ("partial/*/*", "datasets/*/*", "models/*", "holds/*"):
            found |= {
                f"{path.relative_to(self.local)}/"
                for path in self.local.glob(pattern)
                if path.is_dir() and not any(path.iterdir())
            }
        return frozenset(name for name in found if not OF_THE_MACHINE.search(name))

    def temporary(self) -> list[Path]:
        """Temporary files in the cache of this machine."""
        below = (self.folder / "cache").rglob("*")
        return [
            path
            for path in below
            if path.is_file()
            and (path.parent.name == "scratch" or path.name.endswith((".partial", ".lock")))
        ]


class Site:
    """What all trials share. To be made with `site`."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        iterations: int,
        nursery: Nursery,
        shim: Shim,
        proxy: Proxy | None,
        server: Mapping[str, str],
    ) -> None:
        self.nursery, self.shim, self.proxy, self.server = nursery, shim, proxy, server
        self.started = 0  # the process id of the last run
        self._folder, self._model, self._iterations = folder, model, iterations
        self._places = 0
        self._baselines: dict[tuple[int, bool], Baseline] = {}
        self._left: dict[tuple[int, str], list[Left]] = {}

    def place(self, ranks: int = 1, *, is_remote: bool = False) -> Place:
        """A new folder with the recipe, its root empty."""
        self._places += 1
        folder = self._folder / f"place-{self._places:03d}"
        folder.mkdir()
        write_recipe(folder, self._model)
        root, environment = "store", {}
        if is_remote:
            assert self.proxy is not None
            root, environment = (
                f"s3://wind/{uuid.uuid4().hex}",
                s3_environment(self.proxy.address, folder / "cache"),
            )
            os.environ.update(environment)  # of our own looks at it
        place = Place(folder, root if is_remote else str(folder / root), environment)
        config = yaml.safe_load((folder / "tiny.yaml").read_text())
        python = {"transformers": str(self.nursery.python), "training": str(self.nursery.python)}
        place.config(
            root=root,
            iterations=self._iterations,
            training={
                **config["training"],
                "checkpoint_steps": 1,
                "ranks": ranks,
                "micro_prompts": 4 // ranks,
            },
            workers={"python": python},
        )
        return place

    def start(self, place: Place) -> Running:
        """`wind run`, started."""
        running = self.nursery.start(
            "run", "tiny.yaml", "--json", folder=place.folder, environment=place.environment
        )
        self.started = running.pid
        self.shim.aim(running.pid)
        return running

    def wind(self, place: Place, *arguments: str) -> Ended:
        """How `wind` ended; never with a traceback."""
        ended = self.nursery.run(*arguments, folder=place.folder, environment=place.environment)
        refuse_traceback(" ".join(arguments), ended)
        return ended

    def baseline(self, ranks: int = 1, *, is_remote: bool = False) -> Baseline:
        """What the uninterrupted run makes, in a folder or in a bucket."""
        key = (ranks, is_remote)
        if key not in self._baselines:
            place = self.place(ranks, is_remote=is_remote)
            self.shim.arm(place.local)
            if self.proxy:
                self.proxy.calm()
            begun = time.monotonic()
            ended = self.wind(place, "run", "tiny.yaml", "--json")
            seconds = time.monotonic() - begun
            counts, requests = self.shim.counts(), self.proxy.requests if self.proxy else 0
            self.shim.disarm()
            if ended.code:
                raise NotSurvivedError(
                    f"the uninterrupted run ended with {ended.code}: {ended.error}"
                )
            ids = ids_of(ended)
            if is_remote and ids != self.baseline(ranks).ids:
                raise NotSurvivedError(
                    "the uninterrupted run in a bucket made other versions than that in a folder"
                )
            collected = self.wind(place, "gc", "--root", place.root)
            if collected.code:
                raise NotSurvivedError(
                    f"the first collection ended with {collected.code}: {collected.error}"
                )
            self._baselines[key] = Baseline(ids, place.names(), counts, requests, seconds)
            if not is_remote:
                self.leave(place, ranks, "finished", 1.0)
        return self._baselines[key]

    def prepare(self) -> None:
        """Keep roots of the second iteration half done, as kills at equal distances leave them."""
        place, published = self.place(), len(DATASET.findall(" ".join(self.baseline().names)))
        first, step = PER_DATASET * (published + 3) // 2, PER_DATASET * 2
        for at in (first, step, step, step, step):
            names, among = frozenset({Operation.NAME}), f"{place.root}/datasets/"
            self.shim.arm(place.local, Action.SIGNAL_PARENT, at, names, signal=SIGKILL, among=among)
            self.start(place).wait()
            self.nursery.orphans()
            self.shim.disarm()
            done = len(DATASET.findall(" ".join(place.names())))
            self.leave(place, 1, "half done", done / published)

    def leave(self, place: Place, ranks: int, state: str, share: float) -> None:
        """Keep a copy of the root as it is now, for later trials to begin with."""
        kept = self._left.setdefault((ranks, state), [])
        copy = (
            self._folder
            / f"left-{ranks}-{state.replace(' ', '-').replace('/', '')}-{len(kept):03d}"
        )
        shutil.copytree(place.local, copy)
        kept.append(Left(copy, share))

    def left(self, ranks: int, state: str) -> list[Left]:
        """The kept roots in that state."""
        return self._left.get((ranks, state), [])

    def begin_with(self, place: Place, left: Left) -> None:
        """Let the root of `place`, which is empty, be a copy of a kept one."""
        if place.root == str(place.local):
            shutil.copytree(left.root, place.local)
            return
        storage = Store(place.root).storage
        for path in sorted(left.root.rglob("*")):
            if path.is_file() and path.suffix != ".lock":
                storage.put(path.relative_to(left.root).as_posix(), path)


@contextmanager
def site(
    folder: Path,
    *,
    iterations: int,
    with_s3: bool,
    server: Mapping[str, str] | None = None,
    model: Path | None = None,
) -> Iterator[Site]:
    """A site in `folder`; `server` are the variables of a Prefect API and `model` the folder of a
    policy, where there is one.
    """
    with ExitStack() as stack:
        if server is None:
            embedded = EmbeddedServer(folder / "prefect")
            embedded.start()
            stack.callback(embedded.stop)
            embedded.wait()
            server = embedded.variables
        shim = Shim(folder)
        environment = {**QUIET, **server, "PREFECT_HOME": str(folder / "prefect")}
        nursery = Nursery(folder, shim, environment)
        stack.callback(nursery.close)
        proxy = Proxy(stack.enter_context(serving_s3(folder))) if with_s3 else None
        if model is None:
            model = folder / "model"
            model.mkdir()
            save_tiny_model(model)
        nursery.wait()
        yield Site(folder, model, iterations, nursery, shim, proxy, server)


def cold_ids(place: Place, server: Mapping[str, str]) -> tuple[str, ...]:
    """The version ids of a run by processes that were started as a user starts them, without the
    shim.
    """
    config = yaml.safe_load((place.folder / "tiny.yaml").read_text())
    place.config(workers={})
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "tiny.yaml", "--json"],
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **server},
        capture_output=True,
        text=True,
    )
    place.config(workers=config["workers"])
    if done.returncode:
        raise NotSurvivedError(f"the uninterrupted run ended with {done.returncode}: {done.stderr}")
    return ids_of(Ended(0, done.stdout, done.stderr))


def ids_of(ended: Ended) -> tuple[str, ...]:
    """The ids of the versions that a run printed."""
    return tuple(version["id"] for version in json.loads(ended.out))


def refuse_traceback(command: str, ended: Ended) -> None:
    """Raise NotSurvivedError if a command said more than a line of what went wrong."""
    if "Traceback" in ended.error:
        raise NotSurvivedError(
            f"wind {command} ended with {ended.code} and a traceback:\n{ended.error}"
        )
