"""Imports: models and input files copied into a store from outside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wind.errors import InputError, StageError
from wind.store.datasets import Store
from wind.store.handles import Model, Source, folder_fingerprint
from wind.store.incoming import copied, model_files, no_room, parameters, sizes, stored_file
from wind.store.layout import MANIFEST


def import_model(store: Store, folder: Path, **facts: Any) -> Model:
    """Copy a Hugging Face folder into `store`, unless it is there.

    Only weights as safetensors are copied; `facts` are further fields of the manifest. Raises
    NotPlainError for anything but a plain file, or for a link that leads out of the folder, and
    StageError if there is no room for a copy.
    """
    paths = model_files(folder)
    _require_room(store, "models", paths, folder)
    files = [stored_file(path, folder) for path in paths]
    model = Model(fingerprint=folder_fingerprint(files), parameters=parameters(paths))
    if not store.pin_if_whole(model):
        copy = copied(store.scratch("models"), paths, files, folder)
        store.publish_folder(copy, model, files, **facts)
    return model


def import_source(
    store: Store, paths: Sequence[Path], within: Path | None = None, **facts: Any
) -> Source:
    """Copy input files into `store`, unless the same content is there.

    The copies keep their names. `paths` are the files of the folder `within`, or were named one by
    one. Raises InputError for a name that the store needs for itself or cannot keep, NotPlainError
    and StageError as `import_model` does.
    """
    paths = sorted(paths)
    for path in paths:
        if path.name == MANIFEST:
            raise InputError(
                f"a source cannot be called {MANIFEST}, as the store's own record of it is: "
                "rename it"
            )
        if not path.name.isprintable():
            raise InputError(
                f"a source cannot be called {path.name!r}: rename it without control characters"
            )
    _require_room(store, "sources", paths, within)
    files = [stored_file(path, within) for path in paths]
    source = Source(fingerprint=folder_fingerprint(files), files=len(files))
    if not store.pin_if_whole(source):
        copy = copied(store.scratch("sources"), paths, files, within)
        store.publish_folder(copy, source, files, **facts)
    return source


def _require_room(store: Store, name: str, paths: Sequence[Path], within: Path | None) -> None:
    """Raise StageError if this machine has no room for `paths`.

    Content whose names and sizes are those of something stored needs none.
    """
    if (missing := no_room(paths, store.local, within)) is None:
        return
    known = sizes(paths, within)
    manifests = (store.manifest(handle) for handle in store.handles(name))
    if not any({file.name: file.bytes for file in each.files} == known for each in manifests):
        raise StageError(missing)
