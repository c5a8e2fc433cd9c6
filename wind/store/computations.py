"""Computations: one record for every time that stored content was made, beside the content.

A manifest tells the first computation that published its content. Another computation, of other
inputs or by other code, may give equal content; each has its record
`<root>/computations/<noun>/<fingerprint>/<key>.json`, under the dataset and under everything else
that it made. The key is that of the stage's job: the same stage, spec and code have the same
record, anywhere.

A record with our stamp, see `wind.store.stamps`, is believed: a run takes what it tells of instead
of computing it. One without is what somebody else says, for `wind lineage` and the like to show.
"""

import contextlib
from typing import Any

from pydantic import ValidationError

from wind.code.observed import Observed
from wind.errors import DatasetError
from wind.fingerprints import digest
from wind.records import Record
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model, label, noun
from wind.store.nouns import STAGES
from wind.store.schemas import declared
from wind.store.sealed_json import opened, parsed
from wind.store.stamps import is_ours, refuse, stamped

# folders of records beside the content, by the noun and the fingerprint that they are about
BESIDE = ("checks", "computations")


class Computation(Record):
    """What was computed, from what, by which code, where and when."""

    # what the stage is there for; a model only where nothing tells of the dataset it was made with
    dataset: AnyHandle
    stage: str
    spec: dict[str, Any]
    code: str = ""  # digest of the modules that compute the stage
    # digest of each of them, and of the task's source; empty where that is not known
    modules: dict[str, str] = {}
    # what it used beyond spec and modules; nothing is known of one of an older release
    observed: Observed = Observed()
    parents: dict[str, AnyHandle] = {}  # every stored input, by its name in the spec
    outputs: dict[str, AnyHandle] = {}  # what else it made: the model of a training, dropped rows
    numbers: dict[str, float] = {}
    provenance: dict[str, Any] = {}
    stamp: str = ""  # ours, see `wind.store.stamps`; older releases wrote none
    digest: str = ""  # of all fields above, see `wind.store.sealed_json`; older releases wrote none

    def key(self) -> str:
        """The name of the record."""
        return key_of(self.stage, self.spec, self.code)

    def name_of(self, made: AnyHandle) -> str | None:
        """How the computation calls `made` among its outputs; None for its dataset."""
        return next((name for name, handle in self.outputs.items() if handle == made), None)


def key_of(stage: str, spec: dict[str, Any], code: str) -> str:
    """The key of a computation: the same for the same stage, spec and code."""
    return digest([stage, spec, code])


def record(store: Store, computation: Computation) -> None:
    """Keep `computation` with our stamp, unless a record of ours says the same but for its
    provenance.

    What an output has for outputs of its own, such as the model of a training within another stage,
    is among the outputs.
    """
    outputs = dict(computation.outputs)
    for handle in computation.outputs.values():
        outputs |= store.manifest(handle).outputs
    whole = computation.model_copy(update={"outputs": outputs})
    content = stamped("computation", whole)
    for handle in (whole.dataset, *outputs.values()):
        name = f"{_folder(handle)}/{whole.key()}.json"
        if not store.storage.create(name, content) and not _says(store, name, whole):
            store.storage.write(name, content)


def recorded(store: Store, handle: AnyHandle) -> list[Computation]:
    """Every recorded computation that made `handle`, the first first. Raises DatasetError for a
    damaged record.
    """
    names = [name for name in store.storage.names(_folder(handle)) if name.endswith(".json")]
    found = [_read(store, f"{_folder(handle)}/{name}") for name in names]
    return sorted(found, key=lambda each: (each.provenance.get("started", 0.0), each.key()))


def is_recorded(store: Store, handle: AnyHandle, key: str) -> bool:
    """Whether the computation `key` that made `handle` has our records, undamaged, there and under
    all else that it made.
    """
    try:
        computation = _ours(store, f"{_folder(handle)}/{key}.json")
        others = (
            {computation.dataset, *computation.outputs.values()} - {handle}
            if computation
            else set()
        )
        return computation is not None and all(
            _ours(store, f"{_folder(other)}/{key}.json") for other in others
        )
    except (DatasetError, OSError):
        return False


def used_by(store: Store, handle: AnyHandle, key: str) -> Observed:
    """What the recorded computation `key` that made `handle` used. Raises DatasetError or
    FileNotFoundError without a record.
    """
    return _read(store, f"{_folder(handle)}/{key}.json").observed


def made_by(store: Store, stage: str, key: str) -> list[Dataset]:
    """What the computation `key` of `stage` has made, by our undamaged records, the last first: a
    GPU need not repeat itself.
    """
    found = []
    for entry in store.storage.files(f"computations/{stage}"):
        if entry.name.endswith(f"/{key}.json"):
            with contextlib.suppress(DatasetError, FileNotFoundError):
                found += [ours] if (ours := _ours(store, entry.name)) else []
    found.sort(key=lambda each: each.provenance.get("started", 0.0), reverse=True)
    return [each.dataset for each in found if isinstance(each.dataset, Dataset)]


def computation_of(store: Store, handle: AnyHandle, key: str | None = None) -> Computation | None:
    """The computation `key` that made `handle`; without a key, or a record of it, the first; None
    for what came from outside.

    Of content older than the records the manifest tells. Raises DatasetError if neither can be
    read.
    """
    if key is not None:
        try:
            return _read(store, f"{_folder(handle)}/{key}.json")
        except FileNotFoundError:
            pass
    found = recorded(store, handle)
    return found[0] if found else by_manifest(store, handle)


def by_manifest(store: Store, handle: AnyHandle) -> Computation | None:
    """The first computation of `handle` as the manifests tell it: without modules; None for what
    came from outside.

    Raises DatasetError if a manifest cannot be read.
    """
    if not store.manifest(handle).computed_by:
        return None
    made = _maker(store, handle) or handle
    manifest = store.manifest(made)
    facts = {"parents": manifest.parents, "outputs": manifest.outputs, "numbers": manifest.numbers}
    try:
        return Computation(
            dataset=made, **manifest.computed_by, **facts, provenance=manifest.provenance
        )
    except (ValidationError, TypeError) as error:
        raise DatasetError(
            f"the manifest of {label(made)} does not tell how it was computed: it was edited"
        ) from error


def _maker(store: Store, handle: AnyHandle) -> Dataset | None:
    """The dataset of whose computation the model `handle` was an output."""
    if isinstance(handle, Model):
        for stage in (each for each in STAGES if declared(each).has_models):
            for dataset in store.handles(stage):
                if (
                    isinstance(dataset, Dataset)
                    and handle in store.manifest(dataset).outputs.values()
                ):
                    return dataset
    return None


def _folder(handle: AnyHandle) -> str:
    return f"computations/{noun(handle)}/{handle.fingerprint}"


def _says(store: Store, name: str, computation: Computation) -> bool:
    """Whether the record `name` is ours and says what `computation` says, but for when and where; a
    damaged one does not.
    """
    # a stage run by hand knows none
    unsaid = {"provenance", "stamp", "digest"} | (set() if computation.modules else {"modules"})
    try:
        ours = _ours(store, name)
        return ours is not None and ours.model_dump(exclude=unsaid) == computation.model_dump(
            exclude=unsaid
        )
    except DatasetError:
        return False


def _ours(store: Store, name: str) -> Computation | None:
    """The record `name` if it has our stamp; one that has not is remembered as refused."""
    text = store.storage.read(name)
    computation = _checked(store, name, text)
    if is_ours("computation", parsed(text)):
        return computation
    refuse(store.address, name)
    return None


def _read(store: Store, name: str) -> Computation:
    return _checked(store, name, store.storage.read(name))


def _checked(store: Store, name: str, text: bytes) -> Computation:
    """The record `name`, whose content is `text`. Raises DatasetError for one that is damaged, or
    another's.
    """
    where = f"{store.storage.url}/{name}"
    try:
        computation = Computation.model_validate(opened(text))
    except ValidationError as error:
        raise DatasetError(
            f"{where} is not a record of a computation ({error.error_count()} errors): remove it"
        ) from error
    except ValueError as error:
        raise DatasetError(f"{where} {error}: remove it") from error
    if f"{computation.key()}.json" != name.rpartition("/")[2]:
        raise DatasetError(
            f"{store.storage.url}/{name} has the key {computation.key()[:12]}: it was edited; remove it"
        )
    named = {
        f"{_folder(handle)}/" for handle in (computation.dataset, *computation.outputs.values())
    }
    if not any(name.startswith(folder) for folder in named):
        raise DatasetError(
            f"{store.storage.url}/{name} tells of {label(computation.dataset)}: it was edited or moved; remove it"
        )
    return computation
