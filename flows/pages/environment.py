"""The recipe of a version, and where and with what it was computed, as a page shows them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from wind.audit.recomputation import ComputedVersion
from wind.redaction import redacted
from wind.store.datasets import Store
from wind.store.sealed_json import read_unsealed
from wind.store.versions import Version


def settings(
    section: Mapping[str, Any], defaults: Sequence[str], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a recipe as YAML, each with whether it was chosen."""
    for name, value in section.items():
        dotted = f"{prefix}{name}"
        is_default = any(dotted == each or dotted.startswith(f"{each}.") for each in defaults)
        indent = "  " * depth
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", not is_default
            yield from settings(value, defaults, f"{dotted}.", depth + 1)
        else:
            text = yaml.safe_dump(
                {name: value}, default_flow_style=True, allow_unicode=True, width=10**9
            )
            yield f"{indent}{text.strip()[1:-1]}", not is_default


def environment(store: Store, version: Version) -> list[tuple[str, str]]:
    """Describe where the last iteration was computed."""
    computed = ComputedVersion(store, version)
    machines = list(_machines(store, computed))
    found = {
        "Git revision": computed.provenance("git_revision"),
        "Uncommitted changes": {"True": "yes", "False": "no"}.get(
            computed.provenance("git_dirty") or "", computed.provenance("git_dirty")
        ),
        "Host": computed.provenance("host"),
        "Python": computed.provenance("python"),
        **{
            title: ", ".join(
                dict.fromkeys(filter(None, (_listed(each.get(field)) for each in machines)))
            )
            for title, field in (("Platform", "platform"), ("CPU", "cpu"), ("GPUs", "gpus"))
        },
        "Variables": ", ".join(
            dict.fromkeys(name for each in machines for name in each.get("variables", ()))
        ),
    }
    return [(title, str(value)) for title, value in found.items() if value]


def packages(store: Store, version: Version) -> list[tuple[str, str]]:
    """Return the packages that computed the version, each with its release."""
    found = ComputedVersion(store, version).packages()
    return [(name, each) for name, each in found.items() if name != "python" and each]


def _machines(store: Store, computed: ComputedVersion) -> Iterator[Mapping[str, Any]]:
    """Yield the environments of the processes that computed the version."""
    digests = dict.fromkeys(
        digest
        for each in computed.computations.values()
        for digest in each.provenance.get("environments", ())
    )
    for digest in digests:
        try:
            yield read_unsealed(store.storage.read(f"environments/{digest}.json"))
        except (OSError, ValueError):
            continue  # it is beside the content, and may be gone


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def commands(store: Store, version: Version, before: Version | None) -> list[tuple[str, str]]:
    """Return the commands that lead from the page to what it shows."""
    name = f"{version.run}@{version.number}"
    root = "" if store.url == "store" else f" --root {redacted(store.url)}"
    found = [
        ("Check that every byte is as it was published", f"wind verify {name}{root}"),
        ("Compute it again, and compare", f"wind verify {name} --reproduce evaluation{root}"),
        ("Show everything that is recorded about it", f"wind show {name}{root}"),
        ("Write the pages of its data checks", f"wind docs {version.run}{root}"),
    ]
    if before is not None:
        found.append(
            (
                "Compare every row with the version before",
                f"wind diff {before.run}@{before.number} {name}{root}",
            )
        )
    return found
