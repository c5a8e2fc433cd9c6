"""Roots: how users name storage, by a folder or a URL."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from wind.store.storage import LocalStorage, Storage

URL: Final = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")


def storage_for(root: str) -> Storage:
    """Open the storage at `root`, a folder or an object store's URL.

    Raises ConfigError for a URL that cannot be opened.
    """
    match = URL.match(root)
    if match is None:
        return LocalStorage(Path(root))
    if match["scheme"].lower() == "file":
        return LocalStorage(Path(unquote(urlsplit(root).path)))
    from wind.store.object_storage import ObjectStorage

    return ObjectStorage(root)
