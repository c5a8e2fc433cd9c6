"""Computations: a record of each computation that produced stored content.

A manifest describes only the first computation that published its content. Another one, from other
inputs or by other code, may produce equal content. Each has a record
`<root>/computations/<noun>/<fingerprint>/<key>.json`, under the dataset and under each of its other
outputs. The key is that of the stage's job: the same stage, spec and code have the same record on
any machine.

A record with our stamp, see `wind.store.stamps`, is trusted: a run uses the content it describes
instead of computing it. A record without our stamp is only shown, as by `wind lineage`.
"""

import contextlib
from typing import Any

from pydantic import ValidationError

from wind.code.observed import Observed
from wind.errors import DatasetError
from wind.fingerprints import digest
from wind.records import Record
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model, label, noun
from wind.store.stamps import is_ours, refuse, stamped

# Trees of records about content, by its noun and fingerprint.
BESIDE = ("checks", "computations")


class Computation(Record):
    """A record of one computation: inputs, outputs, code, place and time."""

    # the stage's dataset, or a model where no record names the dataset it was computed with
    dataset: AnyHandle
    stage: str
    spec: dict[str, Any]
    code: str = ""  # digest of the modules that compute the stage
    # digest of each of them, and of the task's source; empty where unknown
    modules: dict[str, str] = {}
    # what it used beyond spec and modules; empty in records of older releases
    observed: Observed = Observed()
    parents: dict[str, AnyHandle] = {}  # every stored input, by its name in the spec
    # other results: the model of a training, dropped rows
    outputs: dict[str, AnyHandle] = {}
    numbers: dict[str, float] = {}
    provenance: dict[str, Any] = {}
    stamp: str = ""  # ours, see `wind.store.stamps`; older releases wrote none
    # of all fields above, see `wind.store.sealed_json`; older releases wrote none
    digest: str = ""

    def key(self) -> str:
        """Return the name of the record."""
        return key_of(self.stage, self.spec, self.code)

    def name_of(self, made: AnyHandle) -> str | None:
        """Return the name of `made` among the outputs, or None."""
        return next((name for name, handle in self.outputs.items() if handle == made), None)


def key_of(stage: str, spec: dict[str, Any], code: str) -> str:
    """Return the key that stage, spec and code give a computation."""
    return digest([stage, spec, code])


def record(store: Store, computation: Computation) -> None:
    """Record `computation` with our stamp, unless an equal record of ours exists.

    Provenance is not compared.
    The outputs of its outputs, such as the model of a training within another stage, are recorded
    among its outputs.
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
    """Return every recorded computation that produced `handle`, oldest first.

    Raises DatasetError for a damaged record.
    """
    names = [name for name in store.storage.names(_folder(handle)) if name.endswith(".json")]
    found = [_read(store, f"{_folder(handle)}/{name}") for name in names]
    return sorted(found, key=lambda each: (each.provenance.get("started", 0.0), each.key()))


def is_recorded(store: Store, handle: AnyHandle, key: str) -> bool:
    """Return whether the computation `key` of `handle` has intact records of ours.

    They must be under `handle` and under everything else that it produced.
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
    """Return what the recorded computation `key` of `handle` used.

    Raises FileNotFoundError without a record, DatasetError if it is damaged.
    """
    return _read(store, f"{_folder(handle)}/{key}.json").observed


def made_by(store: Store, stage: str, key: str) -> list[Dataset]:
    """Return the datasets that computation `key` of `stage` produced, newest first.

    Only our intact records count. There can be several, since GPU results are not
    bit-reproducible.
    """
    found = []
    for entry in store.storage.files(f"computations/{stage}"):
        if entry.name.endswith(f"/{key}.json"):
            with contextlib.suppress(DatasetError, FileNotFoundError):
                found += [ours] if (ours := _ours(store, entry.name)) else []
    found.sort(key=lambda each: each.provenance.get("started", 0.0), reverse=True)
    return [each.dataset for each in found if isinstance(each.dataset, Dataset)]


def computation_of(store: Store, handle: AnyHandle, key: str | None = None) -> Computation | None:
    """Return the computation `key` that produced `handle`, or the first one.

    It is the first without a key or without a record of that key. Content older than these records
    is described by its manifest. None for content from outside. Raises DatasetError if neither can
    be read.
    """
    if key is not None:
        try:
            return _read(store, f"{_folder(handle)}/{key}.json")
        except FileNotFoundError:
            pass
    found = recorded(store, handle)
    return found[0] if found else by_manifest(store, handle)


def by_manifest(store: Store, handle: AnyHandle) -> Computation | None:
    """Return the first computation of `handle`, from its manifest, without modules.

    None for content from outside. Raises DatasetError if a manifest cannot be read.
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
    """Return the dataset whose computation also produced the model `handle`."""
    if isinstance(handle, Model):
        for stage in ("training", "rollouts"):
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
    """Return whether our record `name` equals `computation`, provenance aside."""
    # A stage run by hand knows no modules.
    unsaid = {"provenance", "stamp", "digest"} | (set() if computation.modules else {"modules"})
    try:
        ours = _ours(store, name)
        return ours is not None and ours.model_dump(exclude=unsaid) == computation.model_dump(
            exclude=unsaid
        )
    except DatasetError:
        return False


def _ours(store: Store, name: str) -> Computation | None:
    """Read the record `name` if it has our stamp; else refuse it."""
    text = store.storage.read(name)
    computation = _checked(store, name, text)
    if is_ours("computation", sealed_json.read_unsealed(text)):
        return computation
    refuse(store.address, name)
    return None


def _read(store: Store, name: str) -> Computation:
    return _checked(store, name, store.storage.read(name))


def _checked(store: Store, name: str, text: bytes) -> Computation:
    """Parse the record `name` from its `text`.

    Raises DatasetError if it is damaged, or is the record of other content.
    """
    where = f"{store.storage.url}/{name}"
    try:
        computation = Computation.model_validate(sealed_json.read(text))
    except ValidationError as error:
        raise DatasetError(
            f"{where} is not a record of a computation ({error.error_count()} errors): remove it"
        ) from error
    except ValueError as error:
        raise DatasetError(f"{where} {error}: remove it") from error
    if f"{computation.key()}.json" != name.rpartition("/")[2]:
        raise DatasetError(
            f"{where} has the key {computation.key()[:12]}: it was edited; remove it"
        )
    named = {
        f"{_folder(handle)}/" for handle in (computation.dataset, *computation.outputs.values())
    }
    if not any(name.startswith(folder) for folder in named):
        raise DatasetError(
            f"{where} tells of {label(computation.dataset)}: it was edited or moved; remove it"
        )
    return computation
