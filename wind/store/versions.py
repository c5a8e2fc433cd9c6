"""Dataset versions: immutable, content-addressed records of what one iteration used and produced.

A version is `<root>/runs/<run>/versions/0003.json`, the third published in that run. Its id is the
sha256 of what determines its content: the iteration, what the recipe chose, the handles of datasets
and models, and the id of the version before it. Times, paths, worker settings and check results are
in the record as well, but outside the id, and so are the seals of the manifests it relies on.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import StringConstraints, ValidationError

from wind.config.base import Name, without
from wind.errors import ConfigError, DatasetError, StageError, first_line
from wind.fingerprints import digest
from wind.records import Record
from wind.store.datasets import Store
from wind.store.handles import FINGERPRINT, AnyHandle, Dataset, Model
from wind.store.origins import Origin
from wind.store.seals import Seal, seals_of
from wind.store.stamps import stamped
from wind.store.storage import Storage
from wind.store.tags import LATEST, Tags, check_tag

# Fields that records of the first release do not have.
LATER = ("origins", "alarms", "gates", "instead_of")
NUMBERED = re.compile(r"^[0-9]{4,}\.json$")
USED_NUMBER = re.compile(r"^([0-9]{4,})\.(json|forgotten)$")

Key = Annotated[str, StringConstraints(pattern=FINGERPRINT.pattern)]
Folder = Annotated[
    str, StringConstraints(pattern=r"^(datasets/[a-z_]+(\.[a-z_]+)?|models|sources)/[0-9a-f]{64}$")
]


class Content(Record):
    """The content of a version: everything that determines its id.

    The same content gives the same id, on any machine and under any run name.
    """

    iteration: int
    recipe: dict[str, Any]  # the config without paths, names and worker settings
    # The settings at their defaults, by dotted name. Older releases wrote none.
    defaults: tuple[str, ...] = ()
    datasets: dict[str, Dataset]
    model_in: Model
    model_out: Model
    reference: Model
    previous: str | None  # id of the iteration before

    def chosen(self) -> dict[str, Any]:
        """Return the recipe without the settings at their defaults.

        A later release that adds a setting still gets the same result.
        """
        return without(self.recipe, self.defaults)

    def id(self) -> str:
        """Return the version's id."""
        return digest(
            self.model_dump(mode="json", exclude={"defaults"}) | {"recipe": self.chosen()}
        )

    def handles(self) -> dict[str, AnyHandle]:
        """Return the datasets and models by name."""
        models = {
            "model_in": self.model_in,
            "model_out": self.model_out,
            "reference": self.reference,
        }
        return {**self.datasets, **models}


class Version(Record):
    """A published version: its content, and facts outside its id."""

    id: str
    run: Name
    number: int  # 1-based order of publishing in the run
    content: Content
    checks: dict[str, int]  # number of expectations evaluated, by dataset
    check_results: dict[str, Key] = {}  # key of each dataset's stored check result
    warnings: dict[str, list[str]] = {}  # what the checks found but let pass, by dataset
    alarms: dict[str, str] = {}  # what each raised alarm says, by name
    gates: dict[str, str] = {}  # why it did not pass, by gate, as judged when it was published
    instead_of: str | None = None  # id of the version that a rollback replaced by this one
    metrics: dict[str, dict[str, Any]]  # value, low, high, n
    # The time each stage's computation took, even if an earlier run computed it.
    seconds: dict[str, float]
    published: float  # Unix time
    # The computation that produced each dataset, or did first, see wind.store.computations.
    computations: dict[str, Key] = {}
    # The manifests of all content it names and of that content's ancestors, unless an earlier
    # version of its chain has them.
    manifests: dict[Folder, Seal] = {}
    number_before: int | None = None  # the last number used before it in the run, 0 for none
    digest_before: str = ""  # of the record of the version before it
    origins: tuple[Origin, ...] = ()  # every import on its way here, oldest first
    stamp: str = ""  # ours if we computed or imported it, see `wind.store.stamps`
    # Of all fields above, see `wind.store.sealed_json`. Older releases wrote none of the last six.
    digest: str = ""

    def file(self) -> str:
        """Return the name of its record in the store."""
        return f"runs/{self.run}/versions/{self.number:04d}.json"

    def signatures(self) -> str:
        """Return the folder of its signatures, see `wind.audit.signatures`."""
        return f"runs/{self.run}/signatures/{self.id}"

    def handles(self) -> dict[str, AnyHandle]:
        """Return the datasets and models of its content by name."""
        return self.content.handles()


class Versions:
    """The versions of one run, in the order they were published."""

    def __init__(self, store: Store, run: str) -> None:
        self.run = run
        self._store = store
        self._storage = store.storage
        self._folder = f"runs/{run}"
        self._tags = Tags(store.storage, run)

    def __iter__(self) -> Iterator[Version]:
        for name in self._storage.names(f"{self._folder}/versions"):
            if NUMBERED.fullmatch(name):
                yield _read(self._storage, f"{self._folder}/versions/{name}")

    # --------------------------------------------------------------------------------- publishing

    def publish(
        self,
        content: Content,
        *,
        checks: Mapping[str, int],
        check_results: Mapping[str, str] | None = None,
        warnings: Mapping[str, list[str]] | None = None,
        alarms: Mapping[str, str] | None = None,
        gates: Mapping[str, str] | None = None,
        instead_of: str | None = None,
        metrics: Mapping[str, Mapping[str, Any]],
        seconds: Mapping[str, float],
        computations: Mapping[str, str] | None = None,
    ) -> Version:
        """Publish `content` unless the run has it, and tag it `latest`.

        A new version gets the next number. Returns the version, new or not.
        """
        with self._storage.lock(f"{self._folder}/versions.lock") as held:
            published = list(self)
            # The second is the id in an older release, over all settings.
            ids = content.id(), content.model_copy(update={"defaults": ()}).id()
            version = next((version for version in published if version.id in ids), None)
            if version is None:
                last = max(self._used_numbers(), default=0)
                version = Version(
                    id=content.id(),
                    run=self.run,
                    number=last + 1,
                    content=content,
                    checks=dict(checks),
                    check_results=dict(check_results or {}),
                    warnings=dict(warnings or {}),
                    alarms=dict(alarms or {}),
                    gates=dict(gates or {}),
                    instead_of=instead_of,
                    metrics={name: dict(value) for name, value in metrics.items()},
                    seconds=dict(seconds),
                    published=time.time(),
                    computations=dict(computations or {}),
                    **self._ties(content, last, published),
                )
                sealed = stamped("version", version)
                version = Version.model_validate_json(sealed)
                held.check()
                if not self._storage.create(version.file(), sealed):
                    raise StageError(
                        f"{self._storage.url}/{version.file()} was published by another process "
                        "meanwhile: rerun"
                    )
            self.set_latest(version)
        return version

    def has(self, version: Version) -> bool:
        """Return whether the run has `version`.

        Raises ConfigError if another version has its number.
        """
        published = list(self)
        if any(other.id == version.id for other in published):
            return True
        for other in published:
            if other.number == version.number:
                raise ConfigError(
                    f"{self.run}@{other.number} is another version, {other.id[:12]}: "
                    "give --as and another name"
                )
        return False

    def adopt(self, version: Version) -> bool:
        """Add `version` of another store unless the run has it.

        Returns whether it was added. It keeps its number. It is sealed again, over the manifests
        and versions of this store, unless an older release published it. `latest` moves to it from
        the version before it. Raises ConfigError if another version has its number.
        """
        with self._storage.lock(f"{self._folder}/versions.lock"):
            if self.has(version):
                return False
            before = [number for number in self._used_numbers() if number < version.number]
            ties = self._ties(version.content, max(before, default=0), list(self))
            content = (
                stamped("version", version.model_copy(update=ties))
                if version.digest
                else _text(version)
            )
            self._storage.write(version.file(), content)
            if self._tags.id_of(LATEST) in (None, version.content.previous):
                self.set_latest(version)
        return True

    def _ties(self, content: Content, before: int, published: Sequence[Version]) -> dict[str, Any]:
        """Return the fields that tie a version to manifests and its predecessor.

        `before` is the last number that was used before it.
        """
        return {
            "manifests": self._seals(content, published),
            "number_before": before,
            "digest_before": self._digest_of(content.previous, published),
        }

    def _used_numbers(self) -> list[int]:
        """Return the numbers of all versions, forgotten ones included."""
        matches = map(USED_NUMBER.fullmatch, self._storage.names(f"{self._folder}/versions"))
        return [int(match[1]) for match in matches if match]

    def _digest_of(self, wanted: str | None, published: Sequence[Version]) -> str:
        """Return the digest of the record of version `wanted`, in any run."""
        if wanted is None:
            return ""
        ours = next((version for version in published if version.id == wanted), None)
        found = ours or _with_id(self._store, wanted)
        return found.digest if found else ""

    def _seals(self, content: Content, published: Sequence[Version]) -> dict[str, Seal]:
        """Seal the manifests of `content` that no earlier version has sealed."""
        by_id = {version.id: version for version in published}
        known: set[str] = set()
        before = by_id.pop(content.previous or "", None)
        while before is not None:  # each once: a forged chain may go in circles
            known |= set(before.manifests)
            before = by_id.pop(before.content.previous or "", None)
        return seals_of(self._store, content.handles().values(), known)

    # --------------------------------------------------------------------------------------- tags

    def tags(self) -> dict[str, str]:
        """Return the id that each tag points to."""
        return self._tags.ids()

    def tagged(self, name: str) -> Version | None:
        """Return the version that the tag `name` points to, if any."""
        wanted = self._tags.id_of(name)
        return next((version for version in self if version.id == wanted), None) if wanted else None

    def tag(self, name: str, version: Version, *, force: bool = False) -> None:
        """Point the tag `name` to `version`.

        Raises ConfigError if a user cannot give that tag, or, unless `force`, if it points to
        another version.
        """
        check_tag(name)
        with self._storage.lock(f"{self._folder}/versions.lock"):
            before = self._tags.id_of(name)
            if before not in (None, version.id) and not force:
                pointed = self.tagged(name)
                where = f"{self.run}@{pointed.number}" if pointed else "a version that is gone"
                raise ConfigError(
                    f"{self.run}@{name} points to {where}: give --force to move it, or another name"
                )
            self._tags.point(name, version.id)

    def set_latest(self, version: Version) -> None:
        """Point `latest` to `version`."""
        self._tags.point(LATEST, version.id)

    def untag(self, name: str) -> None:
        """Remove the tag `name`. Raises ConfigError if there is none."""
        check_tag(name)
        with self._storage.lock(f"{self._folder}/versions.lock"):
            if self._tags.id_of(name) is None:
                raise ConfigError(
                    f"{self.run} has no tag {name!r}: it has {', '.join(self.tags()) or 'none'}"
                )
            self._tags.remove(name)

    # ---------------------------------------------------------------------------- where it starts

    def base(self) -> Version | None:
        """Return the version that `wind run --from` last began the run from.

        None if it began with its own policy. Raises ConfigError if that version is gone.
        """
        try:
            wanted = self._storage.read(f"{self._folder}/base").decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        base = _with_id(self._store, wanted)
        if base is None:
            raise ConfigError(
                f"{self.run} was begun from version {wanted[:12]}, which is gone: "
                "begin it from another, `wind run --from`"
            )
        return base

    def begin_from(self, base: Version | None) -> None:
        """Record which version the run begins from, for those who continue it."""
        if base is None:
            self._storage.delete(f"{self._folder}/base")
        else:
            self._storage.write(f"{self._folder}/base", f"{base.id}\n".encode())


def runs(store: Store) -> list[str]:
    """Return the names of the runs in the store."""
    storage = store.storage
    return [
        name
        for name in storage.names("runs")
        if any(map(NUMBERED.fullmatch, storage.names(f"runs/{name}/versions")))
    ]


def everywhere(store: Store) -> Iterator[Version]:
    """Yield the versions of all runs, repeating those that several have."""
    return (version for run in runs(store) for version in Versions(store, run))


def history(store: Store, version: Version, *, is_whole: bool = True) -> list[Version]:
    """Return `version` and all versions it continues, first iteration first.

    Several runs have the same version after an import under another name; the one returned is the
    record that the next version was published after. Raises DatasetError if a version is not in the
    store; without `is_whole`, the history begins after that one instead.
    """
    known: dict[str, list[Version]] = {}
    for other in everywhere(store):
        known.setdefault(other.id, []).append(other)
    chain = [version]
    while (previous := chain[0].content.previous) is not None:
        found = known.pop(previous, [])  # each once: a forged chain may go in circles
        if not found and is_whole:
            first = f"{chain[0].run}@{chain[0].number}"
            raise DatasetError(
                f"{first} continues version {previous[:12]}, which is not in {store.url}: "
                "it was forgotten or lost"
            )
        if not found:
            break
        published_after = [each for each in found if each.digest == chain[0].digest_before]
        chain.insert(0, (published_after or found)[-1])
    return chain


def _with_id(store: Store, wanted: str) -> Version | None:
    return next((version for version in everywhere(store) if version.id == wanted), None)


def _text(version: Version) -> bytes:
    """Encode `version` without the fields that only sealed records have."""
    sealed = {
        "manifests",
        "number_before",
        "digest_before",
        "stamp",
        "digest",
        *(name for name in LATER if not getattr(version, name)),
    }
    return version.model_dump_json(indent=1, exclude=sealed).encode()


def _read(storage: Storage, name: str) -> Version:
    try:
        return Version.model_validate_json(storage.read(name))
    except (OSError, ValidationError) as error:
        raise DatasetError(
            f"{storage.url}/{name} is not a version ({first_line(error)}): restore it or remove it"
        ) from error
