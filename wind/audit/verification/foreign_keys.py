"""Verification of foreign keys.

The rows of one dataset must be about rows of another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from wind.audit.verification.files import Files
from wind.errors import DatasetError
from wind.fingerprints import TableFingerprint
from wind.stages import roles
from wind.store.handles import AnyHandle, Dataset, Manifest, folder_of
from wind.store.layout import MANIFEST
from wind.store.schemas import PROMPT, SAMPLE, ForeignKey, find_declaration

EXAMPLES = 3


@dataclass
class ForeignKeys:
    """A verification of foreign keys, each of them once.

    The given datasets must be intact.
    """

    files: Files
    _verified: set[tuple[str, str, ForeignKey]] = field(default_factory=set)

    def of_parents(
        self, child: Dataset, parents: Mapping[str, AnyHandle], manifest: Manifest
    ) -> None:
        """Verify the keys of `child` in its `parents`.

        The keys of its parents in one another are verified, too.
        """
        for key in _foreign_keys(child):
            if key.parent in parents:
                self._relation(child, parents[key.parent], key)
        role = roles().get(child.name)
        self._of_all(parents, [] if role is None else [*role.related_parents.values()])
        prompts = parents.get("prompts")
        if child.name == "generations" and isinstance(prompts, Dataset):
            self._sampled(child, prompts, manifest)

    def of_version(self, handles: Mapping[str, AnyHandle]) -> None:
        """Verify the keys between the `handles` of a version.

        The handles are given by name.
        """
        self._of_all(handles, _related_in_version())

    def _of_all(
        self, handles: Mapping[str, AnyHandle], related: Sequence[Mapping[str, str]]
    ) -> None:
        for names in related:
            known = {target: handles[name] for target, name in names.items() if name in handles}
            for child in (each for each in known.values() if isinstance(each, Dataset)):
                for key in _foreign_keys(child):
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
        # Imported here because most verifications do not need them.
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
        """Return the fingerprint of the key columns alone.

        Rows are sorted by key, so equal keys have equal fingerprints.
        """
        scanner = self.files.store.open(dataset).scanner(columns=list(SAMPLE))
        fingerprint = TableFingerprint(scanner.projected_schema)
        fingerprint.update(scanner.to_batches())
        return fingerprint.hexdigest()

    def _offenders(self, dataset: Dataset, rows: pl.LazyFrame, key: ForeignKey, what: str) -> bool:
        """Report `rows` of `dataset` as a finding, with the first keys.

        Returns whether there are any.
        """
        counted = rows.select(pl.struct(key.columns).alias("key"), pl.len().alias("count"))
        found = counted.head(EXAMPLES).collect(engine="streaming")
        if len(found):
            examples = ", ".join(
                "/".join(str(value)[:12] for value in row.values()) for row in found["key"]
            )
            columns = " and ".join(key.columns)
            self._find(dataset, f"has {found['count'][0]} rows whose {columns} {what}: {examples}")
        return bool(len(found))

    def _find(self, dataset: Dataset, what: str) -> None:
        self.files.find(f"{folder_of(dataset)}/{MANIFEST}", what)


def _foreign_keys(child: Dataset) -> tuple[ForeignKey, ...]:
    declaration = find_declaration(child.name)
    return () if declaration is None else declaration.foreign_keys


@cache
def _related_in_version() -> tuple[Mapping[str, str], ...]:
    """Return which datasets and models of a version must agree.

    One mapping is for what was used in training, the other for what was evaluated. Each goes from
    the name that a foreign key gives its parent to the name in the version.
    """
    trained = {"policy": "model_in"}
    evaluated = {"policy": "model_out"}
    for noun, role in roles().items():
        if role.phase != "evaluation":
            trained[noun] = noun
        if role.phase != "training":
            evaluated[noun] = noun
        elif "eval_" in role.sides:
            evaluated[noun] = f"eval_{noun}"
    for role in roles().values():
        of_policy = role.related_parents.get("eval_", {})
        evaluated |= {field: evaluated[target] for target, field in of_policy.items()}
    return trained, evaluated
