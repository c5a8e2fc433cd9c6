"""The run in progress, as its tasks see it.

It has a store, workers and terminal output, and either computes or only plans. Tasks find it
through a context variable, so that their arguments are exactly the values that determine their
content.
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Self, TypeVar, cast

from data_checks.results import CheckResult
from tasks.devices import described, device_of, refuse_missing_gpus
from tasks.progress import Terminal
from tasks.workers import Pool
from wind.code.named_code import is_own, note_own
from wind.config.objectives import SelectionConfig
from wind.config.recipe import DistillConfig
from wind.config.runs import RunConfig
from wind.config.sampling import Backend
from wind.errors import ConfigError, StageError, first_line
from wind.generations import auto_backend
from wind.nesting import json_value
from wind.redaction import Redactor, redacted
from wind.stages import Job, Side, Spec, stage_named
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.nouns import STAGES
from wind.store.pins import open_pin_set
from wind.store.roots import storage_for
from wind.store.stamps import VARIABLE, lacks_key, refused
from wind.store.versions import Version

Outcome = Literal["computed", "cached", "planned"]

C = TypeVar("C", bound=RunConfig)

_current: ContextVar["Run[Any]"] = ContextVar("run")
_of_thread = threading.local()


@dataclass(frozen=True)
class Event:
    """Record of one task call.

    Its dataset was computed, came from the cache, or is yet to be computed.
    """

    task: str
    dataset: str  # noun of the dataset that the task computes
    name: str  # name of the dataset in versions
    iteration: int | None
    outcome: Outcome
    handle: AnyHandle | None
    key: str | None  # of the computation; None if an older cache did not record it
    spec: Spec


@dataclass
class Run(Generic[C]):
    """State shared by the tasks of one run."""

    config: C
    store: Store
    terminal: Terminal
    pool: Pool
    planning: bool = False
    # Jobs that a plan has not computed, by the fingerprint that stands for the dataset.
    planned: dict[str, Job] = field(default_factory=dict)
    # Fingerprints of datasets that another run computed while a task of this run waited.
    taken: set[str] = field(default_factory=set)
    refresh: str | None = None  # first dataset that `wind rerun --from` recomputes
    iteration: int = 0
    last: Version | None = None  # version of the previous iteration, if there is one yet
    published: list[Version] = field(default_factory=list)  # in order, new or not
    instead_of: str | None = None  # id of the version that the next one replaces, after a rollback
    # What the datasets made meanwhile are for, if not for the version itself: part of their names.
    aside: str = ""
    # Whose rewards they are, by the name of a reward in the recipe.
    judge: str = "training"
    # For each handle, the key of the computation that last made it.
    keys: dict[AnyHandle, str] = field(default_factory=dict)
    # Prefixes of the datasets' names in versions.
    sides: dict[Dataset, Side] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    # The latest check of each dataset, by fingerprint.
    checks: dict[str, CheckResult] = field(default_factory=dict)
    # Packages that hits were computed with in another version: the version then and now.
    other_packages: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Functions that restore dropped weights.
    trainings: dict[Model, Callable[[], object]] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Keep `event` for the summary and report it."""
        self.events.append(event)
        if not isinstance(event.handle, Dataset):
            return
        name = event.name.partition(".")[0]
        self.sides[event.handle] = cast(Side, name.removesuffix(event.dataset))
        if not self.planning:
            self.terminal.line(
                f"  {event.task:<19} {event.outcome:<8} {event.handle.rows:>9} rows  "
                f"{event.handle.fingerprint[:12]}"
            )

    def previous(self, dataset: Dataset) -> Dataset | None:
        """Return the counterpart of `dataset` in the previous iteration, if any."""
        names = (event.name for event in reversed(self.events) if event.handle == dataset)
        name = next(names, dataset.name)
        return self.last.content.datasets.get(name) if self.last else None

    def is_refreshed(self, stage: str) -> bool:
        """Return whether `wind rerun --from` asked to recompute `stage`.

        The command recomputes the stage that it names and every later one.
        """
        return (
            self.refresh is not None
            and stage in STAGES
            and STAGES.index(stage) >= STAGES.index(self.refresh)
        )

    def name_of(self, dataset: str, spec: Spec) -> str:
        """Return the name that versions give the `dataset` of `spec`.

        A dataset about held-out prompts has a prefix that says whose responses it is about. One
        that is only a parent of the version's own says after a dot what it is for.
        """
        role = stage_named(dataset).role
        side = role.side(spec, lambda parent: self.sides.get(parent, "")) if role else ""
        return f"{side}{dataset}.{self.aside}" if self.aside else f"{side}{dataset}"

    @contextmanager
    def beside(self, purpose: str, judge: str = "training") -> Iterator[None]:
        """Name what the block makes as being for `purpose`.

        Such a dataset is no part of the version: a dataset that is one is computed from it. Its
        rewards are those of `judge`, a name in `DistillConfig.reward_sections`.
        """
        around, (self.aside, self.judge) = (self.aside, self.judge), (purpose, judge)
        try:
            yield
        finally:
            self.aside, self.judge = around

    def warning(self) -> str | None:
        """Return a warning about hits computed with other package versions.

        It is one line; None if there are no such hits or the config asks for no warning.
        """
        if not self.other_packages or self.config.cache.packages != "warn":
            return None
        named = ", ".join(
            f"{name} {then} (now {now})"
            for name, (then, now) in sorted(self.other_packages.items())
        )
        return (
            f"taken from the cache, and computed with {named}: set cache.packages to key to "
            "compute it anew, or to ignore"
        )

    def outcomes(self) -> Counter[str]:
        """Count the datasets that were computed, cached or planned."""
        return Counter(event.outcome for event in self.events)


def disbelieved(store: Store) -> list[str]:
    """Return the reasons why records in `store` were not trusted, if any."""
    lines = []
    if names := refused(store.address):
        lines.append(
            f"{len(names)} results are not ours and were not taken ({names[0]}): let {VARIABLE} "
            "name the key file of whoever"
            " made them, or give `wind import --trust` for an archive"
        )
    if reason := lacks_key():
        lines.append(
            f"no key can be kept ({reason}): what was computed will not be known as ours; let "
            f"{VARIABLE} name a file"
        )
    return lines


def current_run() -> Run[Any]:
    """Return the run that this code is part of."""
    return _current.get()


def backend_of(config: DistillConfig) -> Backend:
    """Return the sampling backend.

    It is the configured one or, on auto, the one chosen for the workers' device.
    """
    if config.sampling.backend != "auto":
        return config.sampling.backend
    return auto_backend(device_of(config), config.workers.python)


def selection_of(config: DistillConfig) -> SelectionConfig:
    """Return the selection of rows to train on.

    The rows are the configured ones or, on auto, those of the objective's own paper.
    """
    if config.selection.rows != "auto":
        return config.selection
    return config.selection.model_copy(update={"rows": config.objective.facts.rows[0]})


def refuse_wrong_checks(config: RunConfig) -> None:
    """Check the user's own expectations in `config.checks`.

    Raises ConfigError, in one line, if one of them is wrong.
    """
    if config.checks.extra or config.checks.files:
        from data_checks import validation  # Great Expectations takes seconds to import

        components = config.reward.component_names() if isinstance(config, DistillConfig) else ()
        validation.refuse_wrong_checks(config.checks, components)


def keep_config(store: Store, config: RunConfig) -> None:
    """Store `config`, as given, beside what the run makes.

    `wind rerun` and `wind check` read it if it belongs to this user.
    """
    content = json.dumps(redacted(config.model_dump(mode="json")), indent=1).encode()
    store.storage.write(f"runs/{config.run}/config.json", content)
    note_own(content)


@dataclass(frozen=True)
class KeptConfig:
    """Config of a stored run, as it came with the store."""

    config: DistillConfig
    is_own: bool  # True if this user ran it

    @classmethod
    def of(cls, store: Store, run: str) -> Self | None:
        """Return the config of `run`, or None if there is none.

        Raises ConfigError if the file is not a valid config.
        """
        name = f"runs/{run}/config.json"
        try:
            content = store.storage.read(name)
            return cls(DistillConfig.model_validate(json_value(content)), is_own(content))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(
                f"{store.url}/{name} is no config ({first_line(error)}): restore it or remove it"
            ) from error


@contextmanager
def open_run(
    config: C,
    *,
    planning: bool = False,
    refresh: str | None = None,
    quiet: bool = False,
    pool: Pool | None = None,
) -> Iterator[Run[C]]:
    """Open the run of `config` for the duration of the block.

    Its `auto` settings are decided, nothing else can run under its name, and its workers are ended
    at the end. A `pool` is borrowed: its workers serve this run and outlive it. Raises StageError
    if the run is already going on in another process or if the root cannot be written, and
    ConfigError for a wrong expectation in `config.checks` or for missing GPUs.
    """
    if isinstance(config, DistillConfig):
        sampling = config.sampling.model_copy(update={"backend": backend_of(config)})
        config = config.model_copy(update={"sampling": sampling, "selection": selection_of(config)})
    refuse_wrong_checks(config)
    if not planning:  # a plan may be for a run on another machine
        refuse_missing_gpus(config)
    store = Store(storage_for(config.root).address)
    logs = store.local / "runs" / config.run / "logs"
    workers = nullcontext(pool) if pool else closing(Pool(config.workers, device_of(config), logs))
    around = _current.get(None)
    # A study needs what a run within it makes until it has put that into a dataset of its own.
    shared = (
        around.store.pin_set
        if around is not None and around.store.address == store.address
        else None
    )
    _redact_logs()
    with (
        _alone(store, config.run, wanted=not planning),
        nullcontext(shared) if shared or planning else open_pin_set(store.storage) as pin_set,
        workers as pool,
    ):
        store = Store(store.address, pin_set)
        run = Run(config, store, Terminal(quiet=quiet), pool, planning=planning, refresh=refresh)
        if around is None and not planning:
            run.terminal.line(f"run {config.run} {described(config)}")
        token = _current.set(run)
        try:
            yield run
            if (warning := run.warning()) is not None:
                run.terminal.line(warning)
        finally:
            _current.reset(token)


def _redact_logs() -> None:
    """Redact secrets in what Prefect logs of flow and task runs.

    This includes tracebacks. Prefect's server keeps all of it.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.extra"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_redact)  # adding the same filter twice has no effect


def _redact(record: logging.LogRecord) -> bool:
    # One redactor sees all of a thread's records: a key may arrive one line per record.
    redactor: Redactor = _of_thread.__dict__.setdefault("redactor", Redactor())
    record.msg, record.args = redactor.feed(f"{record.getMessage()}\n").removesuffix("\n"), ()
    if record.exc_info:
        # Formatters use this text from then on.
        record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
    return True


@contextmanager
def _alone(store: Store, name: str, *, wanted: bool) -> Iterator[None]:
    """Hold the run's lock for the duration of the block.

    The lock is freed when the process dies, however it dies.
    """
    with ExitStack() as stack:
        if wanted:
            try:
                stack.enter_context(store.storage.lock(f"runs/{name}/lock", wait=False))
            except BlockingIOError as error:
                raise StageError(
                    f"run {name} is going on in {error.strerror}: wait for it, or give this run "
                    "another name"
                ) from None
            except OSError as error:
                raise StageError(
                    f"the store cannot be written: {error.strerror}: {error.filename}; set "
                    "`root` to a writable folder"
                ) from error
        yield
