"""Small dataset versions made by hand: one row a dataset, four weights a model."""

from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from wind.audit.verification import Verification
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.versions import Content, Version, Versions

Listing = dict[str, int]


def listing(store: Store) -> Listing:
    """The size of each stored file by its name."""
    return {
        entry.name: entry.bytes
        for tree in store.storage.names("")
        for entry in store.storage.files(tree)
    }


def dataset(
    store: Store,
    key: str,
    parents: dict[str, AnyHandle] | None = None,
    outputs: dict[str, AnyHandle] | None = None,
) -> Dataset:
    """One row whose content is `key`."""
    with store.partial("training", key) as partial:
        partial.write(0, pa.table({"step": [1], "metric": [key], "value": [1.0]}))
        return partial.publish(
            1, parents=parents or {}, outputs=outputs, computed_by={}, numbers={}, provenance={}
        )


def model(store: Store, value: float, **facts: Any) -> Model:
    folder = store.scratch("models")
    (folder / "config.json").write_text("{}")
    save_file({"w": np.full(4, value, np.float32)}, folder / "model.safetensors")
    return store.publish_model(folder, **facts)


def version(
    store: Store, iteration: int, before: Version | None, start: Model, run: str = "demo"
) -> Version:
    """An iteration as a run makes it: rewards of a source, a training on them, the model that it
    made.
    """
    rewards = dataset(store, f"{run} rewards {iteration}", {"policy": start})
    trained = model(
        store,
        iteration + len(run) / 100,
        parents={"policy": start},
        computed_by={"stage": "training"},
    )
    training = dataset(
        store,
        f"{run} training {iteration}",
        {"rewards": rewards, "policy": start},
        {"model": trained},
    )
    content = Content(
        iteration=iteration,
        recipe={},
        datasets={"training": training},
        model_in=start,
        model_out=trained,
        reference=start,
        previous=before.id if before else None,
    )
    return Versions(store, run).publish(content, checks={}, metrics={}, seconds={})


def three_iterations(store: Store) -> list[Version]:
    """The versions of a run, each from the policy of the one before."""
    made: list[Version] = []
    policy = model(store, 0.0)
    for iteration in (1, 2, 3):
        made.append(version(store, iteration, made[-1] if made else None, policy))
        policy = made[-1].content.model_out
    return made


def verify(store: Store, version: Version) -> int:
    """The number of bytes checked. Raises DatasetError with the first thing found."""
    verification = Verification(store)
    verification.version(version.run, version.number)
    verification.require()
    return verification.bytes_checked
