"""Origins: whether a version was computed here or imported."""

from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from wind.records import Record
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.stamps import is_ours

if TYPE_CHECKING:  # a version has origins
    from wind.store.versions import Version


class Origin(Record):
    """One import of a version, which its record keeps forever."""

    # the name given by `--trust`, or that of the archive's file
    sender: Annotated[str, StringConstraints(max_length=255)]
    trusted: bool  # its computations and checks count as ours
    imported: float  # Unix time


def origins(store: Store, version: "Version", origin: Origin) -> tuple[Origin, ...]:
    """Return all imports of an unpacked `version`, `origin` being the last.

    There are none for a version computed here. Earlier senders count as untrusted: others trusted
    them, not we.
    """
    if not_computed_here(store, version) is None:
        return ()
    before = (
        version.origins
        if _is_ours(store, version)
        else [each.model_copy(update={"trusted": False}) for each in version.origins]
    )
    return (*before, origin)


def not_computed_here(store: Store, version: "Version") -> str | None:
    """Return why `version` does not count as computed here, if so.

    The reason names the senders of an import; None where our stamp shows that it was.
    """
    if version.origins:
        senders = ", then ".join(
            f"{each.sender}{', whom you trusted' if each.trusted else ''}"
            for each in version.origins
        )
        return f"imported from {senders}, not computed here"
    if _is_ours(store, version):
        return None
    return (
        "without a stamp of ours: copied, of another machine or of an older release, "
        "and not known to be computed here"
    )


def _is_ours(store: Store, version: "Version") -> bool:
    try:
        return is_ours("version", sealed_json.read_unsealed(store.storage.read(version.file())))
    except (OSError, ValueError):
        return False
