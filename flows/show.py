"""Terminal views of versions, plans, and rows."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from wind.machine.terminal import PlainConsole, harmless, is_unicode, say
from wind.metric_table import Metric, metric_named, shown_in
from wind.stages import costs, roles
from wind.store.datasets import Store
from wind.store.handles import label
from wind.store.origins import not_computed_here
from wind.store.versions import Version

if TYPE_CHECKING:
    import polars as pl

    from data_checks.results import CheckResult
    from tasks.reproduction import Reproduction
    from wind.audit.signatures import Signed
    from wind.audit.verification import Verification
    from wind.store.garbage import Collected

__all__ = [
    "checks",
    "collected",
    "datasets",
    "frame",
    "label",
    "measured",
    "reasons",
    "reproduced",
    "signed",
    "tags",
    "verified",
    "version",
    "versions",
]

INPUT = re.compile(r"^input (.+) changed$")


def versions(store: Store, found: Sequence[Version]) -> None:
    """Print the metrics, seconds, and locations of versions.

    Metrics come with their 95% intervals, and seconds by stage.
    """
    if not found:
        say(f"no versions in {store.url}")
        return
    timed = [
        stage
        for stage, role in roles().items()
        if role.is_timed and any(stage in version.seconds for version in found)
    ]
    summary = shown_in("versions")
    metrics = [("version", "iteration", *(metric.title for metric in summary))]
    asked = _benchmarks(found)
    benchmarks = [("benchmarks", *(metric.title for metric in asked))]
    seconds = [("seconds", *timed)]
    places = []
    for version in found:
        name = f"{version.run}@{version.number}"
        cells = (_number(version.metrics.get(each.name), each.digits) for each in summary)
        metrics.append((name, str(version.content.iteration), *cells))
        cells = (_number(version.metrics.get(each.name), each.digits) for each in asked)
        benchmarks.append((name, *cells))
        seconds.append((name, *(f"{_seconds(version, stage):.1f}" for stage in timed)))
        path = f"{store.url}/{version.file()}"
        elsewhere = not_computed_here(store, version)
        places.append(f"{name}  {version.id[:12]}  {path}{f'  ({elsewhere})' if elsewhere else ''}")
        places += _warnings(version)
    tables = [metrics, *([benchmarks] if benchmarks[0][1:] else []), seconds]
    say(*(line for table in tables for line in (*_aligned(table), "")), *places)


def _benchmarks(found: Sequence[Version]) -> list[Metric]:
    """Return the metrics of benchmarks that any of the versions has."""
    names = {name for version in found for name in version.metrics}
    return [metric_named(name) for name in sorted(names) if name.startswith("benchmark.")]


def _seconds(version: Version, stage: str) -> float:
    """Return the seconds that `stage` took in a version.

    Those of an evaluation include sampling and judging responses to the held-out prompts.
    """
    return sum(
        version.seconds.get(name, 0)
        for name in (costs("evaluation") if stage == "evaluation" else (stage,))
    )


def version(store: Store, found: Version) -> None:
    """Print everything about one version."""
    content = found.content
    say(f"{found.run}@{found.number}  iteration {content.iteration}  id {found.id}")
    say(f"before it: {content.previous or 'nothing'}")
    if found.instead_of:
        say(f"instead of: {found.instead_of}, which a gate refused")
    if elsewhere := not_computed_here(store, found):
        say(f"origin: {elsewhere}")
    datasets = Table(
        "dataset", "rows", "fingerprint", "checks", "seconds", "parents", box=None, pad_edge=False
    )
    for name, handle in content.datasets.items():
        parents = ", ".join(
            f"{parent} {handle.fingerprint[:12]}"
            for parent, handle in store.manifest(handle).parents.items()
        )
        warned = len(found.warnings.get(name, ()))
        checks = (
            f"{found.checks.get(name, 0) - warned} passed{f', {warned} warned' if warned else ''}"
        )
        datasets.add_row(
            name,
            str(handle.rows),
            handle.fingerprint[:12],
            checks,
            f"{found.seconds.get(name, 0):.1f}",
            parents,
        )
    for name in ("model_in", "model_out", "reference"):
        model = getattr(content, name)
        datasets.add_row(name, f"{model.parameters} weights", model.fingerprint[:12], "", "", "")
    PlainConsole().print(datasets)
    metrics = Table("metric", "value [95% interval]", "n", box=None, pad_edge=False)
    for name, entry in found.metrics.items():
        metrics.add_row(name, _number(entry, 4), str(entry["n"]))
    PlainConsole().print(metrics)
    for line in _warnings(found):
        say(line)
    _code(store, found)
    say(f"policy: {store.where(content.model_out)}")
    for name in ("model_in", "model_out", "reference"):
        if store.is_dropped(getattr(content, name)):
            again = f"`wind rerun {found.run} --from training` computes them again"
            say(f"the weights of {name} were dropped by a retention policy; {again}")


def measured(found: Version) -> None:
    """Print the metrics of one version, each under its title."""
    say(f"{found.run}@{found.number}  id {found.id[:12]}")
    metrics = Table("metric", "value [95% interval]", "n", box=None, pad_edge=False)
    for name, entry in found.metrics.items():
        metric = metric_named(name)
        metrics.add_row(name, _number(entry, max(metric.digits, 3)), str(entry["n"]))
    PlainConsole().print(metrics)
    for line in _warnings(found):
        say(line)


def checks(store: Store, results: "Mapping[str, CheckResult]") -> None:
    """Print how the checks of each dataset turned out.

    A failure or a warning is followed by the path of its page.
    """
    for name, result in results.items():
        verdict = "failed" if not result.success else "warned" if result.warnings else "passed"
        say(f"{name:<18} {verdict}  {result.expectations:>3} expectations")
        findings = (*result.failures, *result.warnings)
        for line in (*findings, *([f"see {store.storage.url}/{result.path}"] if findings else [])):
            say(f"  {line}")


def verified(name: str, verification: "Verification") -> None:
    """Print the findings, one per line, and what was verified."""
    for note in verification.notes:
        say(f"note: {note}")
    for finding in verification.findings:
        say(str(finding))
    outcome = f"{len(verification.findings)} findings" if verification.findings else "whole"
    say(f"{name}  {outcome}  {verification.bytes_checked} bytes")


def signed(found: "Sequence[Signed]") -> None:
    """Print who signed each version, one per line.

    An unsigned version is not printed here: the command reports it as an error.
    """
    for each in found:
        say(*(f"note: {each.name()}: {note}" for note in each.notes))
        if not each.problem:
            say(f"{each.name()}  signed by {each.signer}  {each.key}")


def reproduced(name: str, result: "Reproduction") -> None:
    """Print whether a dataset was reproduced.

    If it was not, print the differences, too, and what else has changed since.
    """
    outcome = "not reproduced" if result.differences else "reproduced"
    say(f"{name}  {outcome}  {result.computed[:12]}, recorded {result.recorded[:12]}")
    for line in (*result.differences, *result.changed):
        say(f"  {line}")


def datasets(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the datasets that a command made, and where they are."""
    for name, dataset in found.items():
        say(f"{name}  {dataset['rows']} rows  {dataset['path']}")


def reasons(why: Sequence[str]) -> str:
    """Explain in one line why a stage runs.

    All changed inputs are listed together.
    """
    inputs = [match[1] for reason in why if (match := INPUT.fullmatch(reason))]
    others = [reason for reason in why if not INPUT.fullmatch(reason)]
    together = [f"input{'s' * (len(inputs) > 1)} {', '.join(inputs)} changed"] if inputs else []
    return "; ".join([*others, *together])


def tags(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the tags and the versions that they name."""
    table = Table("tag", "version", "id", box=None, pad_edge=False)
    for entry in found:
        version = f"{entry['run']}@{entry['number']}" if entry["number"] else "gone"
        table.add_row(f"{entry['run']}@{entry['tag']}", version, entry["id"][:12])
    PlainConsole().print(table) if found else say("no tags")


def collected(found: "Collected") -> None:
    """Print what a garbage collection removed, by name and then by kind."""
    for item in found.items:
        say(f"{item.name}  {item.bytes} bytes")
    table = Table("kind", "items", "bytes", box=None, pad_edge=False)
    for kind, (items, size) in found.kinds().items():
        table.add_row(kind, str(items), str(size))
    if found.items:
        PlainConsole().print(table)
    say(f"{found.bytes()} bytes {'would be freed' if found.dry_run else 'freed'}")


def frame(found: "pl.DataFrame") -> None:
    """Print rows as a table, with nothing cut off."""
    import polars as pl

    shown = pl.DataFrame([_shown(column) for column in found])
    form: Literal["ASCII_FULL_CONDENSED"] | None = (
        None if is_unicode(sys.stdout) else "ASCII_FULL_CONDENSED"
    )
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        fmt_str_lengths=80,
        tbl_hide_column_data_types=True,
        tbl_width_chars=200,
        tbl_formatting=form,
    ):
        say(*str(shown).split("\n"))


def _shown(column: "pl.Series") -> "pl.Series":
    """Return a column whose name and texts take one line each.

    So do the texts inside nested values.
    """
    import polars as pl

    name = harmless(column.name)
    if column.dtype == pl.String:
        return pl.Series(
            name, [text if text is None else harmless(text) for text in column], pl.String
        )
    if column.dtype.is_nested() and "String" in str(column.dtype):
        return pl.Series(
            name, [None if value is None else str(value) for value in column.to_list()], pl.String
        )
    return column.alias(name)


def _warnings(version: Version) -> list[str]:
    gates = [f"  gate {name} refused it: {reason}" for name, reason in version.gates.items()]
    alarms = [f"  alarm: {name}, {said}" for name, said in version.alarms.items()]
    return [
        *gates,
        *alarms,
        *_checked(version),
    ]


def _checked(version: Version) -> list[str]:
    return [
        f"  warning: {name}, {warning}"
        for name, warnings in version.warnings.items()
        for warning in warnings
    ]


def _code(store: Store, found: Version) -> None:
    """Print the source trees and environments of a version's datasets.

    Each tree comes with the command that restores it.
    """
    trees: dict[str, list[str]] = {}
    environments: dict[str, list[str]] = {}
    for name, handle in found.content.datasets.items():
        made = store.manifest(handle).provenance
        trees.setdefault(_tree(store, made), []).append(name)
        for environment in made.get("environments", ()):
            environments.setdefault(environment, []).append(name)
    for tree, names in trees.items():
        state, _, back = tree.partition("\n")
        say(f"code {state}: {', '.join(names)}", *([f"  {back}"] if back else []))
    for environment, names in environments.items():
        place = f"{store.url}/environments/{environment}.json"
        say(f"environment {environment[:12]}: {', '.join(names)}", f"  {place}")


def _tree(store: Store, made: Mapping[str, Any]) -> str:
    """Return the git state recorded in a manifest's provenance.

    A second line holds the command that restores it.
    """
    if "git_revision" not in made:
        return "of no git checkout"
    state, back = made["git_revision"][:12], f"git checkout {made['git_revision']}"
    if "git_patch" in made:
        state += f", changed by the patch {made['git_patch'][:12]}"
        state += (
            ", which may not apply: a secret was taken out" if "git_patch_redacted" in made else ""
        )
        back += f" && git apply {store.url}/patches/{made['git_patch']}.patch"
    elif made.get("git_dirty"):
        state += ", changed by a patch that was not kept"
    return f"{state}\n{back}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines with aligned columns.

    A rich table would take seconds for a thousand rows.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _number(entry: Mapping[str, Any] | None, digits: int) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    value = f"{entry['value']:.{digits}f}"
    return (
        value
        if entry["low"] is None
        else f"{value} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
    )
