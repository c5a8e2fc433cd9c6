"""Data Docs hold the pages that we rendered, and no others: a page may run whatever its writer
wants in the reader's browser.
"""

import hashlib
import re
from pathlib import Path

import pytest

from data_checks.docs import docs
from tests.wind.versions_case import three_iterations
from wind.exchange.archives import export_archive, import_archive
from wind.fingerprints import digest
from wind.store import sealed_json, stamps
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.stamps import stamped
from wind.store.versions import Version

PLANTED = b"<script>alert()</script>"


def judged(
    store: Store, version: Version, suite: str, page: bytes, *, is_ours: bool = True
) -> Path:
    """Keep a passed check of the dataset of `version`, as its last; the file of its page."""
    handle: Dataset = version.content.datasets["training"]
    key = digest([suite, handle.fingerprint])
    name = f"checks/{handle.name}/{handle.fingerprint}/{key}"
    facts = {
        "handle": handle.model_dump(mode="json"),
        "success": True,
        "expectations": 3,
        "key": key,
        "suite": digest(suite),
    }
    result = {**facts, "page_sha256": hashlib.sha256(page).hexdigest(), "path": f"{name}.html"}
    store.storage.write(
        f"{name}.json", stamped("check", result) if is_ours else sealed_json.encode(result)
    )
    store.storage.write(f"{name}.html", page)
    store.storage.write(f"checks/{handle.name}/{handle.fingerprint}/latest", f"{key}\n".encode())
    return store.root / f"{name}.html"


def pages_of(store: Store) -> set[str]:
    """The names of the pages that the index of Data Docs leads to, which are those beside it and
    hold nothing planted.
    """
    files = docs(store, "demo")
    links = set(re.findall(r'href="([^"]+)"', files["index.html"].decode()))
    assert links == files.keys() - {"index.html"}
    assert not any(PLANTED in content for content in files.values())
    return links


def test_a_page_that_was_edited_or_that_somebody_else_wrote_is_left_out(store: Store) -> None:
    first, second, third = three_iterations(store)
    judged(store, first, "theirs", PLANTED, is_ours=False)
    judged(store, first, "ours", b"<p>ours</p>")
    judged(store, second, "ours", b"<p>ours</p>").write_bytes(PLANTED)
    judged(store, third, "theirs", PLANTED, is_ours=False)
    assert pages_of(store) == {"0001/training.html"}


def test_pages_of_an_archive_are_left_out_unless_its_sender_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "sender"))
        store = Store(tmp_path / "theirs")
        versions = three_iterations(store)
        for version in versions:
            judged(store, version, "theirs", b"<p>theirs</p>")
        assert len(pages_of(store)) == 3
        export_archive(store, versions[-1], tmp_path / "sent.wind")
    stamps._own.cache_clear()
    for name, trust, pages in (("ours", None, 0), ("trusting", "ann", 3)):
        import_archive(Store(tmp_path / name), tmp_path / "sent.wind", trust=trust)
        assert len(pages_of(Store(tmp_path / name))) == pages
