"""Dataset versions: what one iteration consumed and produced, as one immutable, content-addressed
record.

A version is `<root>/runs/<run>/versions/0003.json`, the third published in that run. Its id is the
sha256 of what determines its content: the iteration, what the recipe chose, the handles of datasets
and models, and the id of the version before it. Times, paths, worker settings and check results
stand beside that content, outside the id; so do the seals of the manifests it relies on. A tag is a
small file that holds an id.
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
from wind.store.datasets import MANIFEST, Store
from wind.store.handles import FINGERPRINT, AnyHandle, Dataset, Model, folder_of
from wind.store.origins import Origin
from wind.store.sealed_json import DIGEST, opened
from wind.store.stamps import stamped
from wind.store.storage import Storage

NUMBERED = re.compile(r"^[0-9]{4,}\.json$")
USED_NUMBER = re.compile(r"^([0-9]{4,})\.(json|forgotten)$")
LATEST = "latest"
TAG = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")

Key = Annotated[str, StringConstraints(pattern=FINGERPRINT.pattern)]
Folder = Annotated[
    str, StringConstraints(pattern=r"^(datasets/[a-z_]+(\.[a-z_]+)?|models|sources)/[0-9a-f]{64}$")
]


class Content(Record):
    """What determines a version: two versions with the same content have the same id, on any
    machine and under any name.
    """

    iteration: int
    recipe: dict[str, Any]  # the config without paths, names and worker settings
    # what of it was at its defaults, by dotted name; older releases wrote none
    defaults: tuple[str, ...] = ()
    datasets: dict[str, Dataset]
    model_in: Model
    model_out: Model
    reference: Model
    previous: str | None  # id of the iteration before

    def chosen(self) -> dict[str, Any]:
        """The recipe without what was at its defaults, so that a later release which adds a setting
        has the same.
        """
        return without(self.recipe, self.defaults)

    def id(self) -> str:
        """The version's id."""
        return digest(
            self.model_dump(mode="json", exclude={"defaults"}) | {"recipe": self.chosen()}
        )


class Seal(Record):
    """What a manifest said when a version was published that relies on it."""

    digest: str  # the manifest's own
    claims: str  # the same without provenance, which a repair by the same computation changes


class Version(Record):
    """A published version: its content, and what stands beside it."""

    id: str
    run: Name
    number: int  # 1-based order of publishing in the run
    content: Content
    checks: dict[str, int]  # expectations that were judged, by dataset
    check_results: dict[str, Key] = {}  # the key under which each dataset's check result is kept
    warnings: dict[str, list[str]] = {}  # what the checks found and let pass, by dataset
    metrics: dict[str, dict[str, Any]]  # value, low, high, n
    seconds: dict[str, float]  # what each stage's computation took, whenever it was
    published: float  # Unix time
    # of the computation that made or had made each dataset, see wind.store.computations
    computations: dict[str, Key] = {}
    # of all that it names and what that was made of, where no version before it has it
    manifests: dict[Folder, Seal] = {}
    # the last number that was used before it in the run, 0 for none
    number_before: int | None = None
    digest_before: str = ""  # of the record of the version before it
    origins: tuple[Origin, ...] = ()  # every import that it came by, the first first
    stamp: str = ""  # ours, see `wind.store.stamps`, whether we computed or imported it
    # of all fields above, see `wind.store.sealed_json`; older releases wrote none of the six
    digest: str = ""

    def file(self) -> str:
        """The name of its record in the store."""
        return f"runs/{self.run}/versions/{self.number:04d}.json"

    def signatures(self) -> str:
        """The folder of its signatures, see `wind.audit.signatures`."""
        return f"runs/{self.run}/signatures/{self.id}"

    def handles(self) -> dict[str, AnyHandle]:
        """Everything stored that the version names."""
        content = self.content
        models = {
            "model_in": content.model_in,
            "model_out": content.model_out,
            "reference": content.reference,
        }
        return {**content.datasets, **models}


class Versions:
    """The versions of one run, in the order they were published."""

    def __init__(self, store: Store, run: str) -> None:
        self.run = run
        self._store = store
        self._storage = store.storage
        self._folder = f"runs/{run}"

    def __iter__(self) -> Iterator[Version]:
        for name in self._storage.names(f"{self._folder}/versions"):
            if NUMBERED.fullmatch(name):
                yield _read(self._storage, f"{self._folder}/versions/{name}")

    def publish(
        self,
        content: Content,
        *,
        checks: Mapping[str, int],
        check_results: Mapping[str, str] | None = None,
        warnings: Mapping[str, list[str]] | None = None,
        metrics: Mapping[str, Mapping[str, Any]],
        seconds: Mapping[str, float],
        computations: Mapping[str, str] | None = None,
    ) -> Version:
        """The version with `content`: the one already published, or a new one with the next number.
        Tags it `latest`.
        """
        with self._storage.lock(f"{self._folder}/versions.lock") as held:
            published = list(self)
            # that of an older release, with all settings
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
                    metrics={name: dict(value) for name, value in metrics.items()},
                    seconds=dict(seconds),
                    published=time.time(),
                    computations=dict(computations or {}),
                    manifests=self._seals(content, published),
                    number_before=last,
                    digest_before=self._digest_of(content.previous, published),
                )
                sealed = stamped("version", version)
                version = Version.model_validate_json(sealed)
                held.check()
                if not self._storage.create(version.file(), sealed):
                    raise StageError(
                        f"{self._storage.url}/{version.file()} was published by another process meanwhile: rerun"
                    )
            self.set_latest(version)
        return version

    def has(self, version: Version) -> bool:
        """Whether `version` is one of the run. Raises ConfigError if another one has its number."""
        published = list(self)
        if any(other.id == version.id for other in published):
            return True
        for other in published:
            if other.number == version.number:
                raise ConfigError(
                    f"{self.run}@{other.number} is another version, {other.id[:12]}: give --as and another name"
                )
        return False

    def adopt(self, version: Version) -> bool:
        """Whether `version`, from another store, was added with its number: not if the run has it.

        It is sealed again, over the manifests and versions of this store, unless an older release
        published it. `latest` follows from the version before it. Raises ConfigError if another
        version has its number.
        """
        with self._storage.lock(f"{self._folder}/versions.lock"):
            if self.has(version):
                return False
            published = list(self)
            facts = {
                "manifests": self._seals(version.content, published),
                "number_before": max(
                    (number for number in self._used_numbers() if number < version.number),
                    default=0,
                ),
                "digest_before": self._digest_of(version.content.previous, published),
            }
            content = (
                stamped("version", version.model_copy(update=facts))
                if version.digest
                else _text(version)
            )
            self._storage.write(version.file(), content)
            if self._tagged_id(LATEST) in (None, version.content.previous):
                self.set_latest(version)
        return True

    def tag(self, name: str, version: Version, *, force: bool = False) -> None:
        """Let `name` point to `version`. Raises ConfigError if it cannot be a tag, or, unless
        `force`, if it points elsewhere.
        """
        _refuse_no_tag(name)
        with self._storage.lock(f"{self._folder}/versions.lock"):
            before = self._tagged_id(name)
            if before not in (None, version.id) and not force:
                pointed = self.tagged(name)
                where = f"{self.run}@{pointed.number}" if pointed else "a version that is gone"
                raise ConfigError(
                    f"{self.run}@{name} points to {where}: give --force to move it, or another name"
                )
            self._point(name, version)

    def set_latest(self, version: Version) -> None:
        """Let `latest` point to `version`."""
        self._point(LATEST, version)

    def untag(self, name: str) -> None:
        """Remove the tag `name`. Raises ConfigError if there is none."""
        _refuse_no_tag(name)
        with self._storage.lock(f"{self._folder}/versions.lock"):
            if self._tagged_id(name) is None:
                raise ConfigError(
                    f"{self.run} has no tag {name!r}: it has {', '.join(self.tags()) or 'none'}"
                )
            self._storage.delete(f"{self._folder}/tags/{name}")

    def forget(self, versions: Sequence[Version], *, force: bool = False) -> None:
        """Remove the records of `versions`, whose data the next collection frees; their numbers are
        never given again.

        `latest` moves to the last of the others. Raises ConfigError, unless `force`, if another tag
        points to one of them, which would go with it, or if a version that stays continues one.
        """
        with self._storage.lock(f"{self._folder}/versions.lock"):
            names = {version.id: f"{self.run}@{version.number}" for version in versions}
            tags = {
                tag: names[wanted]
                for tag, wanted in self.tags().items()
                if wanted in names and tag != LATEST
            }
            if not force:
                self._refuse_to_forget(names, tags)
            for tag in tags:
                self._storage.delete(f"{self._folder}/tags/{tag}")
            numbers = {version.number for version in versions}
            rest = [other for other in self if other.number not in numbers]
            if rest and self._tagged_id(LATEST) in names:
                self._point(LATEST, rest[-1])
            elif not rest:
                self._storage.delete(f"{self._folder}/tags/{LATEST}")
            # each may continue the one before
            for version in sorted(versions, key=lambda version: -version.number):
                record = f"{self._folder}/versions/{version.number:04d}"
                self._storage.write(f"{record}.forgotten", f"{version.id}\n".encode())
                self._storage.delete(f"{record}.json")
                self._storage.delete(version.signatures())

    def _refuse_to_forget(self, names: Mapping[str, str], tags: Mapping[str, str]) -> None:
        for tag, name in tags.items():
            raise ConfigError(
                f"{name} has the tag {tag!r}: `wind tag {self.run} {tag} --delete` first, or give --force"
            )
        goes: list[Version] = []
        stays: list[Version] = []
        for version in everywhere(self._store):
            (goes if version.run == self.run and version.id in names else stays).append(version)
        for version in stays:
            for before in (each for each in goes if each.id == version.content.previous):
                # of another run with the same content
                has_other = any(each.id == before.id for each in stays)
                if version.digest_before == before.digest or not has_other:
                    name = f"{version.run}@{version.number}"
                    raise ConfigError(
                        f"{name} continues {names[before.id]}: forget it first, or give --force"
                    )

    def _point(self, name: str, version: Version) -> None:
        self._storage.write(f"{self._folder}/tags/{name}", tag_text(self.run, name, version.id))

    def _used_numbers(self) -> list[int]:
        """The numbers of all versions there are and ever were."""
        matches = map(USED_NUMBER.fullmatch, self._storage.names(f"{self._folder}/versions"))
        return [int(match[1]) for match in matches if match]

    def base(self) -> Version | None:
        """The version that the run was last begun from, `wind run --from`; None where it began with
        its own policy.

        Raises ConfigError if that version is gone.
        """
        try:
            wanted = self._storage.read(f"{self._folder}/base").decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        base = _with_id(self._store, wanted)
        if base is None:
            raise ConfigError(
                f"{self.run} was begun from version {wanted[:12]}, which is gone: begin it from another, `wind run --from`"
            )
        return base

    def begin_from(self, base: Version | None) -> None:
        """Keep which version the run is begun from, for those who continue it."""
        if base is None:
            self._storage.delete(f"{self._folder}/base")
        else:
            self._storage.write(f"{self._folder}/base", f"{base.id}\n".encode())

    def tags(self) -> dict[str, str]:
        """The id that each tag points to."""
        found = {
            name: self._tagged_id(name)
            for name in self._storage.names(f"{self._folder}/tags")
            if TAG.fullmatch(name)
        }
        return {name: wanted for name, wanted in found.items() if wanted is not None}

    def tagged(self, name: str) -> Version | None:
        """The version that the tag `name` points to, if there is one."""
        wanted = self._tagged_id(name)
        return next((version for version in self if version.id == wanted), None) if wanted else None

    def _tagged_id(self, name: str) -> str | None:
        try:
            words = (
                self._storage.read(f"{self._folder}/tags/{name}").decode(errors="replace").split()
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DatasetError(
                f"the tag {self.run}@{name} cannot be read ({error}): tag the version again"
            ) from error
        return words[0] if words else None

    def _digest_of(self, wanted: str | None, published: Sequence[Version]) -> str:
        """The digest of the record of the version `wanted`: of this run, or of the one that it was
        branched from.
        """
        if wanted is None:
            return ""
        ours = next((version for version in published if version.id == wanted), None)
        found = ours or _with_id(self._store, wanted)
        return found.digest if found else ""

    def _seals(self, content: Content, published: Sequence[Version]) -> dict[str, Seal]:
        """The seals of what `content` names and of all that was made of, as far as no version in
        its chain has them.
        """
        by_id = {version.id: version for version in published}
        known: set[str] = set()
        before = by_id.pop(content.previous or "", None)
        while before is not None:  # each once: a forged chain may go in circles
            known |= set(before.manifests)
            before = by_id.pop(before.content.previous or "", None)
        seals: dict[str, Seal] = {}
        waiting: list[AnyHandle] = [
            *content.datasets.values(),
            content.model_in,
            content.model_out,
            content.reference,
        ]
        while waiting:
            handle = waiting.pop()
            name = folder_of(handle)
            if name in known or name in seals:
                continue
            try:
                fields = opened(self._storage.read(f"{name}/{MANIFEST}"))
                manifest = self._store.manifest(handle)
            except (OSError, ValueError):
                # gone, as garbage collection leaves it, or damaged: nothing to vouch for
                continue
            seals[name] = seal_of(fields)
            waiting += [*manifest.parents.values(), *manifest.outputs.values()]
        return dict(sorted(seals.items()))


def seal_of(manifest: Mapping[str, Any]) -> Seal:
    """The seal of a manifest's fields."""
    claims = {name: value for name, value in manifest.items() if name not in ("provenance", DIGEST)}
    return Seal(
        digest=digest({name: value for name, value in manifest.items() if name != DIGEST}),
        claims=digest(claims),
    )


def tag_text(run: str, name: str, version: str) -> bytes:
    """What the file of a tag holds: the id of its version, and the digest that ties it to its name."""
    return f"{version} {digest([run, name, version])}\n".encode()


def runs(store: Store) -> list[str]:
    """The names of the runs in the store."""
    storage = store.storage
    return [
        name
        for name in storage.names("runs")
        if any(map(NUMBERED.fullmatch, storage.names(f"runs/{name}/versions")))
    ]


def everywhere(store: Store) -> Iterator[Version]:
    """The versions of all runs; one that several runs have, once for each."""
    return (version for run in runs(store) for version in Versions(store, run))


def history(store: Store, version: Version, *, is_whole: bool = True) -> list[Version]:
    """`version` and all that it continues, the first iteration first, in whatever runs they are.

    Of runs with the same version, as an import under another name leaves them, it is the record
    that the next was published after. Raises DatasetError if one of them is not in the store;
    unless `is_whole` is wanted, it begins behind that one.
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
                f"{first} continues version {previous[:12]}, which is not in {store.url}: it was forgotten or lost"
            )
        if not found:
            break
        published_after = [each for each in found if each.digest == chain[0].digest_before]
        chain.insert(0, (published_after or found)[-1])
    return chain


def _with_id(store: Store, wanted: str) -> Version | None:
    return next((version for version in everywhere(store) if version.id == wanted), None)


def _refuse_no_tag(name: str) -> None:
    """Raise ConfigError if a user cannot give or take the tag `name`."""
    if not TAG.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a tag: use letters, digits, dot, dash and underscore"
        )
    if name.isdigit():
        raise ConfigError(
            f"{name!r} cannot be a tag: RUN@{name} is the version with that number; add a letter"
        )
    if name == LATEST:
        raise ConfigError(
            f"{LATEST!r} cannot be given or taken: it always points to the version published last"
        )


def _text(version: Version) -> bytes:
    """The record of `version` without the fields of a sealed one."""
    sealed = {
        "manifests",
        "number_before",
        "digest_before",
        "stamp",
        "digest",
        *(() if version.origins else ("origins",)),
    }
    return version.model_dump_json(indent=1, exclude=sealed).encode()


def _read(storage: Storage, name: str) -> Version:
    try:
        return Version.model_validate_json(storage.read(name))
    except (OSError, ValidationError) as error:
        raise DatasetError(
            f"{storage.url}/{name} is not a version ({first_line(error)}): restore it or remove it"
        ) from error
