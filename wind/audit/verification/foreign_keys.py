"""Verification of foreign keys: the rows of one dataset are about rows of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from wind.audit.verification.files import Files
from wind.errors import DatasetError
from wind.fingerprints import TableFingerprint
from wind.store.handles import AnyHandle, Dataset, Manifest, folder_of
from wind.store.layout import MANIFEST
from wind.store.schemas import FOREIGN_KEYS, PROMPT, SAMPLE, ForeignKey

EXAMPLES = 3

# How the datasets that belong together are called where they are: by the names that foreign keys
# know them by.
TRAIN: Final = {
    name: name
    for name in (
        "prompts",
        "generations",
        "rewards",
        "win_rates",
        "selections",
        "logps",
        "rollouts",
        "policy",
    )
}
POLICY: Final = {
    "prompts": "prompts",
    "generations": "generations_policy",
    "rewards": "rewards_policy",
    "logps": "logps",
}
REFERENCE: Final = {
    "prompts": "prompts",
    "generations": "generations_reference",
    "rewards": "rewards_reference",
}
ASSEMBLED: Final[dict[str, tuple[dict[str, str], ...]]] = {
    "training": (TRAIN,),
    "evaluation": (POLICY, REFERENCE),
}
OF_VERSION: Final = (
    TRAIN | {"policy": "model_in"},
    {
        "prompts": "prompts",
        "policy": "model_out",
        "evaluation": "evaluation",
        **{name: f"eval_{name}" for name in ("generations", "rewards", "logps")},
        "generations_policy": "eval_generations",
        "rewards_policy": "eval_rewards",
    },
)


@dataclass
class ForeignKeys:
    """The foreign keys that were verified so far, each once; what is given must be whole."""

    files: Files
    _verified: set[tuple[str, str, ForeignKey]] = field(default_factory=set)

    def of_parents(
        self, child: Dataset, parents: Mapping[str, AnyHandle], manifest: Manifest
    ) -> None:
        """Verify the keys of `child` in its `parents`, and those of its parents in one another."""
        for key in FOREIGN_KEYS.get(child.name, ()):
            if key.parent in parents:
                self._relation(child, parents[key.parent], key)
        self._of_all(parents, ASSEMBLED.get(child.name, ()))
        prompts = parents.get("prompts")
        if child.name == "generations" and isinstance(prompts, Dataset):
            self._sampled(child, prompts, manifest)

    def of_version(self, handles: Mapping[str, AnyHandle]) -> None:
        """Verify the keys between the `handles` of a version, by the names that it has for them."""
        self._of_all(handles, OF_VERSION)

    def _of_all(
        self, handles: Mapping[str, AnyHandle], assemblies: Sequence[Mapping[str, str]]
    ) -> None:
        for names in assemblies:
            known = {role: handles[called] for role, called in names.items() if called in handles}
            for child in (each for each in known.values() if isinstance(each, Dataset)):
                for key in FOREIGN_KEYS.get(child.name, ()):
                    if key.parent in known:
                        self._relation(child, known[key.parent], key)

    def _relation(self, child: Dataset, parent: AnyHandle, key: ForeignKey) -> None:
        if (folder_of(child), folder_of(parent), key) in self._verified:
            return
        self._verified.add((folder_of(child), folder_of(parent), key))
        try:
            if isinstance(parent, Dataset):
                self._keys_in(child, parent, key)
            else:
                others = self._lazy(child, key.columns).filter(
                    pl.col(key.columns[0]) != parent.fingerprint
                )
                self._offenders(child, others.unique(), key, f"is not {folder_of(parent)}")
        except (DatasetError, pl.exceptions.PolarsError, pa.ArrowException, ValueError) as error:
            self._find(child, f"has keys that cannot be compared with {folder_of(parent)}: {error}")

    def _keys_in(self, child: Dataset, parent: Dataset, key: ForeignKey) -> None:
        is_key_of_both = key.columns == SAMPLE and key.is_one_to_one
        if is_key_of_both and self._keys(child) == self._keys(parent):
            return
        ours, theirs = self._lazy(child, key.columns), self._lazy(parent, key.columns)
        has_others = self._offenders(
            child,
            ours.join(theirs, on=key.columns, how="anti"),
            key,
            f"is not in {folder_of(parent)}",
        )
        if key.is_one_to_one:
            missing = theirs.join(ours, on=key.columns, how="anti")
            has_others |= self._offenders(parent, missing, key, f"is not in {folder_of(child)}")
        if is_key_of_both and not has_others and child.rows != parent.rows:
            self._find(child, f"has {child.rows} rows for the {parent.rows} of {folder_of(parent)}")

    def _sampled(self, generations: Dataset, prompts: Dataset, manifest: Manifest) -> None:
        """Verify that exactly the prompts that were due were answered."""
        # which most verifications do not need
        from wind.generations import GenerationsSpec
        from wind.prompt_parts import sampled_prompts

        try:
            spec = GenerationsSpec.model_validate(manifest.computed_by.get("spec"))
            rows = self.files.store.frame(prompts, ["prompt_id", "split"])
        except (ValidationError, DatasetError):
            return  # published by hand, without a spec
        due = (
            sampled_prompts(rows, spec.split, spec.seed, spec.iteration, spec.parts)
            .select(PROMPT)
            .lazy()
        )
        answered, key = self._lazy(generations, PROMPT), ForeignKey(PROMPT, "prompts")
        self._offenders(
            generations,
            answered.join(due, on=PROMPT, how="anti"),
            key,
            f"was not due in {folder_of(prompts)}",
        )
        self._offenders(
            prompts,
            due.join(answered, on=PROMPT, how="anti"),
            key,
            f"was due, and is not in {folder_of(generations)}",
        )

    def _lazy(self, dataset: Dataset, columns: Sequence[str]) -> pl.LazyFrame:
        return pl.scan_pyarrow_dataset(self.files.store.open(dataset)).select(columns)

    def _keys(self, dataset: Dataset) -> str:
        """The fingerprint of the key columns alone: rows are sorted by key, so equal keys have
        equal ones.
        """
        scanner = self.files.store.open(dataset).scanner(columns=list(SAMPLE))
        fingerprint = TableFingerprint(scanner.projected_schema)
        fingerprint.update(scanner.to_batches())
        return fingerprint.hexdigest()

    def _offenders(self, dataset: Dataset, rows: pl.LazyFrame, key: ForeignKey, what: str) -> bool:
        """Whether `rows` of `dataset` has any: a finding, with the first."""
        counted = rows.select(pl.struct(key.columns).alias("key"), pl.len().alias("count"))
        found = counted.head(EXAMPLES).collect(engine="streaming")
        if len(found):
            examples = ", ".join(
                "/".join(str(value)[:12] for value in row.values()) for row in found["key"]
            )
            self._find(
                dataset,
                f"has {found['count'][0]} rows whose {' and '.join(key.columns)} {what}: {examples}",
            )
        return bool(len(found))

    def _find(self, dataset: Dataset, what: str) -> None:
        self.files.find(f"{folder_of(dataset)}/{MANIFEST}", what)
