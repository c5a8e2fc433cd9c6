"""Cards: the README.md of an exported dataset or model folder.

They are written for people and for the Hugging Face Hub.

A card says what the export is, what it was made from, how it was made and how well it did. Every
fact in it comes from the version, the manifests and the declarations of the datasets. It contains
no times, hosts or local paths, and leaves the license to whoever publishes it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from wind.config.base import setting_of
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Manifest, Model, Source, label
from wind.store.schemas import find_declaration
from wind.store.versions import Version, history

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
PAPER = (
    "[WIND](https://arxiv.org/abs/2410.20727), "
    "iterative best-of-N distillation by win-rate dominance"
)
LICENSE = (
    "Not stated here: it follows from the licenses of the prompts and models above. "
    "Add `license:` to the head of this file."
)


def dataset_card(
    store: Store,
    name: str,
    version: Version | None,
    datasets: Mapping[str, Dataset],
    splits: Mapping[str, Mapping[str, str]],
) -> str:
    """Return the card of exported datasets.

    `splits` has a pattern for the files of each split, by config and split.
    """
    data_files = {
        config: [{"split": split, "path": path} for split, path in found.items()]
        for config, found in splits.items()
    }
    head = {
        "pretty_name": name,
        "tags": ["wind", "synthetic", "best-of-n"],
        "configs": [
            {"config_name": config, "data_files": files} for config, files in data_files.items()
        ],
    }
    listed = [
        [
            title,
            handle.rows,
            _row(handle),
            f"`{handle.fingerprint[:12]}`",
        ]
        for title, handle in datasets.items()
    ]
    some = next(iter(splits), "")
    parts = [
        _head(head),
        f"# {name}\n\n{_identity(version)}Rows are sorted by key and no row was left out.",
        f'```python\nimport datasets\n\ndatasets.load_dataset("ORG/NAME", "{some}")\n```',
        f"## What\n\n{_table(['dataset', 'rows', 'one row is', 'fingerprint'], listed)}",
        *(
            _columns(store, handle)
            for handle in {handle.name: handle for handle in datasets.values()}.values()
        ),
        *_made(store, version, [*datasets.values()]),
        f"## License\n\n{LICENSE}",
    ]
    return "\n\n".join(parts) + "\n"


def model_card(store: Store, name: str, version: Version | None, model: Model) -> str:
    """Return the card of an exported model.

    `version` is the one that produced it, if any.
    """
    first = history(store, version)[0].content.model_in if version else model
    base, revision = _origin(store.manifest(first))
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["wind", "best-of-n"]}
    if revision and HUB_ID.fullmatch(base):
        head["base_model"] = base
    what = f"{model.parameters} weights in safetensors, fingerprint `{model.fingerprint}`."
    if version is not None:
        objective = setting_of(version.content.recipe, "objective.name")
        what += f" Trained from {_named(base, revision)} with the objective `{objective}`."
    parts = [
        _head(head),
        f"# {name}\n\n{_identity(version)}{what}",
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'AutoModelForCausalLM.from_pretrained("ORG/NAME")\n```',
        *(_made(store, version, [*version.content.datasets.values()]) if version else []),
        f"## License\n\n{LICENSE}",
    ]
    return "\n\n".join(parts) + "\n"


def _identity(version: Version | None) -> str:
    if version is None:
        return ""
    return (
        f"Iteration {version.content.iteration} of run `{version.run}`, made by {PAPER}. "
        f"Version id `{version.id}`: the sha256 of everything that determines it.\n\n"
    )


def _row(handle: Dataset) -> str:
    declaration = find_declaration(handle.name)
    return "" if declaration is None else declaration.row


def _columns(store: Store, handle: Dataset) -> str:
    declaration = find_declaration(handle.name)
    meanings = {} if declaration is None else declaration.meanings()
    rows = [
        [f"`{column.name}`", f"`{column.type}`", meanings.get(column.name, "")]
        for column in store.open(handle).schema
    ]
    return f"### {handle.name}\n\n{_table(['column', 'type', 'meaning'], rows)}"


def _made(store: Store, version: Version | None, datasets: Sequence[Dataset]) -> list[str]:
    """Return the sections on inputs, method, metrics and lineage."""
    manifests = {handle: store.manifest(handle) for handle in datasets}
    computed = [
        [
            label(handle),
            str(manifest.computed_by.get("stage", "")),
            f"`{str(manifest.computed_by.get('code', ''))[:12]}`",
        ]
        for handle, manifest in manifests.items()
    ]
    revisions = sorted(
        {str(manifest.provenance.get("git_revision", "")) for manifest in manifests.values()} - {""}
    )
    how = [_table(["dataset", "stage", "code"], computed)]
    if revisions:
        how.append(f"Source revision: {', '.join(f'`{revision}`' for revision in revisions)}.")
    inputs = _table(["input", "origin", "revision", "fingerprint"], _inputs(store, manifests))
    parts = [f"## From what\n\n{inputs}"]
    if version is not None:
        recipe = yaml.safe_dump(version.content.recipe, sort_keys=True, allow_unicode=True)
        how.append(f"The recipe, without paths, names and worker settings:\n\n```yaml\n{recipe}```")
        how.append(
            "To reproduce it, run that recipe with the inputs above: where the same content comes "
            "out, it gets the same fingerprints and the same version id, on any machine."
        )
        numbers = [[name, *_interval(values)] for name, values in version.metrics.items()]
        parts.append(f"## How\n\n{_blocks(how)}")
        parts.append(f"## Metrics\n\n{_table(['metric', 'value', '95% interval', 'n'], numbers)}")
    else:
        parts.append(f"## How\n\n{_blocks(how)}")
    lineage = [
        [
            label(handle),
            ", ".join(f"{role} {label(parent)}" for role, parent in manifest.parents.items()),
        ]
        for handle, manifest in manifests.items()
    ]
    before = (
        f"\n\nThe version before it: `{version.content.previous}`."
        if version and version.content.previous
        else ""
    )
    parts.append(f"## Lineage\n\n{_table(['dataset', 'computed from'], lineage)}{before}")
    return parts


def _inputs(store: Store, manifests: Mapping[Dataset, Manifest]) -> list[list[str]]:
    """Return a row of the table for every ancestor that was imported."""
    waiting: list[AnyHandle] = [
        parent for manifest in manifests.values() for parent in manifest.parents.values()
    ]
    seen: set[AnyHandle] = set()
    found = []
    while waiting:
        handle = waiting.pop(0)
        if handle in seen:
            continue
        seen.add(handle)
        manifest = store.manifest(handle)
        waiting += manifest.parents.values()
        origin, revision = _origin(manifest)
        if isinstance(handle, Source) or "origin" in manifest.provenance:
            found.append([label(handle), origin, revision, f"`{handle.fingerprint}`"])
    return sorted(found)


def _origin(manifest: Manifest) -> tuple[str, str]:
    """Return the origin and the revision of stored content.

    A Hub id is returned unchanged, with its revision; of a local path only the last name.
    """
    origin, revision = (
        str(manifest.provenance.get("origin", "")),
        str(manifest.provenance.get("revision", "")),
    )
    if revision and HUB_ID.fullmatch(origin):
        return origin, revision
    return PurePath(origin).name or ", ".join(file.name for file in manifest.files[:3]), ""


def _named(origin: str, revision: str) -> str:
    return f"`{origin}` at `{revision}`" if revision else f"the local model `{origin}`"


def _interval(values: Mapping[str, Any]) -> list[str]:
    low, high = values.get("low"), values.get("high")
    interval = "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
    return [
        f"{values['value']:.4g}" if values.get("value") is not None else "",
        interval,
        str(values.get("n", "")),
    ]


def _head(fields: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)}---"


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def _blocks(parts: Sequence[str]) -> str:
    return "\n\n".join(parts)
