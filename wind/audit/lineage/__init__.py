"""Lineage: every ancestor of stored content, back to the imported files.

A node is a version, a dataset, a model, a source or a single prompt. An edge leads from an input to
what was made from it, and is labeled with the name that one has for the other. Where several
computations made the same content, the one that the version in question used counts (see
`wind.store.computations`). Missing or damaged content is a node that says so.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import polars as pl

from wind.errors import ConfigError, DatasetError, InputError
from wind.records import Record
from wind.stages import roles
from wind.store.computations import Computation, by_manifest, computation_of, recorded
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Manifest, Model, Source, label, noun
from wind.store.origins import not_computed_here
from wind.store.versions import Version, Versions, everywhere

# the fields of provenance that a node shows
PROVENANCE = (
    "started",
    "seconds",
    "host",
    "git_revision",
    "git_dirty",
    "packages",
    "origin",
    "source",
    "revision",
)
UNITS = {"dataset": "rows", "model": "weights", "source": "files"}


class Node(Record):
    """A node of the graph: something stored."""

    id: str  # unique in the graph: noun and fingerprint
    kind: Literal["version", "prompt", "dataset", "model", "source"]
    name: str  # short, for people
    # rows of a dataset, weights of a model, files of a source, the iteration of a version
    count: int | None = None
    bytes: int | None = None
    # stage, code digest and key of its computation; None for what was imported
    computed_by: dict[str, str] | None = None
    computations: int = 0  # how many computations are recorded that made this content
    numbers: dict[str, float] = {}
    provenance: dict[str, Any] = {}  # the known fields of PROVENANCE
    files: list[dict[str, Any]] = []  # of a source: name, bytes, sha256
    # of a prompt: its text, split, answer, and the row of the source
    prompt: dict[str, Any] | None = None
    elsewhere: str | None = None  # of a version: why it does not count as computed here
    # of a version: the id of the one that a gate refused, and that a rollback replaced by it
    instead_of: str | None = None
    damage: str | None = None  # what is missing or damaged; None if nothing is

    def caption(self) -> tuple[str, str]:
        """Return a title and a line of detail, which may be empty."""
        if self.kind == "version":
            instead = f" instead of {self.instead_of[:12]}" if self.instead_of else ""
            return self.name, f"iteration {self.count}{instead}"
        if self.kind == "prompt":
            return self.name, (self.prompt or {}).get("row") or ""
        title, _, fingerprint = self.name.partition("/")
        return title, f"{fingerprint}  {self._files() or self._amount()}"

    def _files(self) -> str:
        """Name the first file of a source and count the others.

        Empty for anything but a source.
        """
        if not self.files:
            return ""
        others = len(self.files) - 1
        return f"{self.files[0]['name']} and {others} more" if others else self.files[0]["name"]

    def _amount(self) -> str:
        """Return the count with its unit, in millions from ten million on."""
        count = self.count or 0
        number = f"{count:,}" if count < 10**7 else f"{count / 1e6:,.0f} M"
        return f"{number} {UNITS[self.kind] if count != 1 else UNITS[self.kind].removesuffix('s')}"


class Edge(Record):
    """An edge, from an input to what was made from it."""

    parent: str
    child: str
    # the parent's name in the child's spec or version, or the child's among the parent's outputs
    name: str


class Lineage(Record):
    """A graph of one node and all its ancestors.

    The edges are in the order in which each child names its parents.
    """

    root: str
    nodes: dict[str, Node]
    edges: list[Edge]

    def parents(self, child: str) -> list[tuple[str, Node]]:
        """Return the parents of `child`, each with the name it has there.

        Several names of one parent are joined by commas.
        """
        names: dict[str, list[str]] = {}
        for edge in self.edges:
            if edge.child == child:
                names.setdefault(edge.parent, []).append(edge.name)
        return [(", ".join(called), self.nodes[parent]) for parent, called in names.items()]


def of_version(store: Store, version: Version) -> Lineage:
    """Return the lineage of everything that `version` names."""
    name = f"{version.run}@{version.number}"
    elsewhere = not_computed_here(store, version)
    root = Node(
        id=f"version/{version.id}",
        kind="version",
        name=name,
        count=version.content.iteration,
        elsewhere=elsewhere,
        instead_of=version.instead_of,
    )
    return _grown(store, root, version.handles(), used(store, chain(store, version)))


def of_handle(store: Store, handle: AnyHandle, version: Version | None = None) -> Lineage:
    """Return the lineage of `handle`, through the computations that `version` used.

    Without a version, through the first computation that made it.
    """
    return _grown(store, None, {"": handle}, used(store, chain(store, version) if version else ()))


def of_prompt(store: Store, version: Version, prompt_id: str) -> Lineage:
    """Return the lineage of one prompt, with its row in the source."""
    prompts = version.content.datasets["prompts"]
    rows = store.frame(prompts, ["prompt_id", "prompt", "split", "answer", "messages"])
    row = rows.row(by_predicate=pl.col("prompt_id") == prompt_id, named=True)
    told = {name: row[name] for name in ("prompt", "split", "answer")}
    told["row"] = _row_of(store, prompts, row["messages"])
    root = Node(
        id=f"prompt/{prompt_id}", kind="prompt", name=f"prompt {prompt_id[:12]}", prompt=told
    )
    return _grown(store, root, {"prompts": prompts}, used(store, [version]))


def chain(store: Store, version: Version) -> list[Version]:
    """Return `version` and the stored versions it continues, the first iteration first."""
    known = {
        each.id: each
        for each in (*everywhere(store), *Versions(store, version.run))
        if each.id != version.id
    }
    found = [version]
    while (before := known.pop(found[-1].content.previous or "", None)) is not None:
        found.append(before)
    return found[::-1]


def used(store: Store, versions: Iterable[Version]) -> dict[AnyHandle, str]:
    """Map every dataset of `versions` to the key of its computation.

    Where several versions have the same dataset, the last one counts. The outputs of a computation,
    such as a trained model, have the key of the dataset they were made with.
    """
    keys: dict[AnyHandle, str] = {}
    for each in versions:
        for name, handle in named(store, each).items():
            if (key := each.computations.get(name)) is None:
                continue
            keys[handle] = key
            computation = _computation(store, handle, key)[0]
            keys |= dict.fromkeys(computation.outputs.values() if computation else (), key)
    return keys


def named(store: Store, version: Version) -> dict[str, Dataset]:
    """Return the datasets of `version` and of its reference, by name.

    The datasets of the reference are those that the evaluation of `version` compared with. The
    names are those that computations have for them.
    """
    datasets = dict(version.content.datasets)
    if "evaluation" in datasets:
        evaluation = _computation(
            store, datasets["evaluation"], version.computations.get("evaluation")
        )[0]
        everyone = roles()
        for noun, parent in everyone["evaluation"].related_parents["reference_"].items():
            handle = evaluation.parents.get(parent) if evaluation else None
            if isinstance(handle, Dataset) and "reference_" in everyone[noun].sides:
                datasets[f"reference_{noun}"] = handle
    return datasets


def _grown(
    store: Store, root: Node | None, start: Mapping[str, AnyHandle], keys: Mapping[AnyHandle, str]
) -> Lineage:
    """Build the graph of `start` and all its ancestors.

    If there is a `root`, it is the child of everything in `start`.
    """
    nodes = {root.id: root} if root else {}
    edges = (
        [Edge(parent=_id(handle), child=root.id, name=name) for name, handle in start.items()]
        if root
        else []
    )
    waiting = list(dict.fromkeys(start.values()))
    while waiting:
        handle = waiting.pop(0)
        if _id(handle) in nodes:
            continue
        computation, damage = _computation(store, handle, keys.get(handle))
        nodes[_id(handle)] = _node(store, handle, computation, damage)
        if computation is None:
            continue
        if computation.dataset == handle:
            edges += [
                Edge(parent=_id(parent), child=_id(handle), name=name)
                for name, parent in computation.parents.items()
            ]
            waiting += computation.parents.values()
        else:
            made_with = computation.dataset
            name = computation.name_of(handle) or noun(handle)
            edges.append(Edge(parent=_id(made_with), child=_id(handle), name=name))
            waiting.append(made_with)
    return Lineage(root=root.id if root else next(iter(nodes)), nodes=nodes, edges=edges)


def _node(
    store: Store, handle: AnyHandle, computation: Computation | None, damage: str | None
) -> Node:
    manifest: Manifest | None = None
    try:
        manifest = store.manifest(handle)
        if not store.is_whole(handle):
            damage = (
                f"{label(handle)} or what was made with it lacks a file, "
                "or has one of another size: run `wind verify`"
            )
    except DatasetError as error:
        damage = str(error)
    provenance = {
        **(manifest.provenance if manifest else {}),
        **(computation.provenance if computation else {}),
    }
    return Node(
        id=_id(handle),
        kind="model"
        if isinstance(handle, Model)
        else "source"
        if isinstance(handle, Source)
        else "dataset",
        name=label(handle),
        count=_count(handle),
        bytes=manifest.bytes() if manifest else None,
        computed_by={"stage": computation.stage, "code": computation.code, "key": computation.key()}
        if computation
        else None,
        computations=_recorded(store, handle),
        numbers=computation.numbers if computation and computation.dataset == handle else {},
        provenance={name: provenance[name] for name in PROVENANCE if name in provenance},
        files=[
            {"name": file.name, "bytes": file.bytes, "sha256": file.sha256}
            for file in manifest.files
        ]
        if manifest and isinstance(handle, Source)
        else [],
        damage=damage,
    )


def _computation(
    store: Store, handle: AnyHandle, key: str | None
) -> tuple[Computation | None, str | None]:
    """Return the computation that made `handle`, and any damage to its record.

    If the record is damaged, the computation is read from the manifest, if that is possible.
    """
    try:
        return computation_of(store, handle, key), None
    except DatasetError as error:
        try:
            return by_manifest(store, handle), str(error)
        except DatasetError:
            return None, str(error)


def _recorded(store: Store, handle: AnyHandle) -> int:
    try:
        return len(recorded(store, handle))
    except DatasetError:
        return 0  # the node says which of them is damaged


def _row_of(store: Store, prompts: Dataset, messages: list[dict[str, str]]) -> str | None:
    """Locate a prompt in its source, such as `prompts.jsonl line 3`.

    None if the source cannot be read.
    """
    from wind.prompts import PromptsSpec
    from wind.prompts.messages import conversation_of, plain
    from wind.prompts.rows import read_rows

    computation = _computation(store, prompts, None)[0]
    if computation is None:
        return None
    try:
        spec = PromptsSpec.model_validate(computation.spec)
        rows = read_rows(store, spec.source, spec.field, spec.limit)
        return next(
            (row.where for row in rows if plain(conversation_of(row, spec)) == messages), None
        )
    except (DatasetError, InputError, ConfigError, ValueError, OSError):
        return None


def _id(handle: AnyHandle) -> str:
    return f"{noun(handle)}/{handle.fingerprint}"


def _count(handle: AnyHandle) -> int:
    if isinstance(handle, Dataset):
        return handle.rows
    return handle.parameters if isinstance(handle, Model) else handle.files
