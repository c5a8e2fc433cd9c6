"""Write reports: one file, or a folder that any file share can show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from data_checks.docs import docs
from flows.pages import GENERATOR, Link
from flows.pages.comparison import compare_versions
from flows.pages.glance import glance
from flows.pages.samples import embedded_samples, write_samples
from wind.audit.lineage import chain
from wind.errors import ConfigError
from wind.files import atomic_write
from wind.store.datasets import Store
from wind.store.versions import Version

HEAD: Final = 4096  # bytes of a page within which its generator is named
INDEX: Final = "index.html"


def keep_page(store: Store, versions: Sequence[Version]) -> dict[str, Any]:
    """Write the page of one version, or of two compared, beside the run in the store."""
    first = versions[0]
    against = f"-{versions[1].run}-{versions[1].number}" if len(versions) > 1 else ""
    name = f"runs/{first.run}/report{against}.html"
    page, has_samples = _page(store, versions)
    store.storage.write(name, page)
    return _told(f"{store.storage.url}/{name}", page, has_samples)


def write_page(
    store: Store, versions: Sequence[Version], path: Path, *, force: bool
) -> dict[str, Any]:
    """Write the page of one version, or of two compared, to a file.

    Raises ConfigError, unless `force`, if something else than a report is there.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: give a file, or --bundle for a folder")
    if path.exists() and not force and not _is_report(path):
        raise ConfigError(f"--out {path} is there and is no report: give --force to replace it")
    page, has_samples = _page(store, versions)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page)
    return _told(str(path), page, has_samples)


def write_bundle(
    store: Store, versions: Sequence[Version], folder: Path, *, force: bool
) -> dict[str, Any]:
    """Write a folder with the page, the samples page with its data, and the data checks.

    The page comes last. Raises ConfigError, unless `force`, if the folder holds something else
    than a report.
    """
    index = folder / INDEX
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--bundle {folder} is a file: give a folder")
    is_empty = not folder.exists() or not any(folder.iterdir())
    if not is_empty and not force and not (index.exists() and _is_report(index)):
        raise ConfigError(
            f"--bundle {folder} is not empty and holds no report: give another folder, or --force"
        )
    last = versions[-1]
    for name, content in docs(store, last.run).items():
        path = folder / "checks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    links = [
        ("At a glance" if len(versions) == 1 else "Compared", INDEX),
        ("Samples", "samples.html"),
    ]
    checks = Link("Data checks", "checks/index.html")
    samples = [*(Link(title, href, href != INDEX) for title, href in links), checks]
    write_samples(store, chain(store, last), folder, samples)
    here = [*(Link(title, href, href == INDEX) for title, href in links), checks]
    if len(versions) == 1:
        page = glance(store, last, links=here, checks_page=checks.href)
    else:
        page = compare_versions(store, *versions, links=here, reading="samples.html")
    atomic_write(index, page)
    return _told(str(index), page, True)


def _page(store: Store, versions: Sequence[Version]) -> tuple[bytes, bool]:
    """Return the page as one file, and whether the samples are in it."""
    if len(versions) > 1:
        return compare_versions(store, *versions), False
    samples = embedded_samples(store, chain(store, versions[0]))
    links = [Link("At a glance", "#main", True)]
    if samples is not None:
        links.append(Link("Samples", "#samples"))
    return glance(store, versions[0], links=links, samples=samples), samples is not None


def _told(page: str, content: bytes, has_samples: bool) -> dict[str, Any]:
    return {"page": page, "bytes": len(content), "samples": has_samples}


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(HEAD)
