"""Terminal views of lineages, prompt histories, and differences."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flows.show import reasons
from wind.audit.changes import Change
from wind.audit.diff import DatasetDifference, Difference, Shift
from wind.audit.lineage import Lineage, Node
from wind.audit.prompt_history import Answers, History
from wind.audit.ratings import Rating
from wind.machine.terminal import PlainConsole, harmless, say
from wind.metric_table import shown_in

LONGEST = 400  # characters of a response shown in a terminal; JSON has all of them
# people need no more than twelve digits of a digest
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,52}\b")
STYLES = {
    "version": "bold yellow",
    "prompt": "bold magenta",
    "dataset": "cyan",
    "model": "red",
    "source": "green",
}


def lineage(found: Lineage) -> None:
    """Print the ancestors as a tree, each one only once."""
    top = found.nodes[found.root]
    tree = Tree(_node(top, ""))
    seen = {found.root}
    waiting = [(tree, called, parent) for called, parent in reversed(found.parents(found.root))]
    while waiting:
        branch, called, node = waiting.pop()
        if node.id in seen:
            branch.add(_line(f"{called}: ", (node.name, STYLES[node.kind]), ("  see above", "dim")))
            continue
        seen.add(node.id)
        grown = branch.add(_node(node, called))
        waiting += [(grown, name, parent) for name, parent in reversed(found.parents(node.id))]
    PlainConsole().print(tree)


def ratings(found: Mapping[str, Sequence[Rating]]) -> None:
    """Print the ratings under each judge."""
    table = Table("judge", "iteration", "rating", "Elo", box=None, pad_edge=False)
    for judge, rows in found.items():
        for row in rows:
            logits = _with_interval(row.rating, row.low, row.high, 3)
            points = _with_interval(row.elo, row.elo_low, row.elo_high, 0)
            table.add_row(judge, str(row.iteration), logits, points)
    PlainConsole().print(table)


def _with_interval(value: float, low: float | None, high: float | None, digits: int) -> str:
    shown = f"{value:+.{digits}f}"
    return shown if low is None else f"{shown} [{low:+.{digits}f}, {high:+.{digits}f}]"


def history(found: History) -> None:
    """Print a prompt and its responses in each iteration.

    Iterations are side by side, each with its best response at the top.
    """
    say(f"prompt {found.prompt_id}  run {found.run}  {found.split}")
    say(f"prompt: {found.prompt}", f"answer: {found.answer or '-'}")
    if found.meta != "{}":
        say(f"meta: {found.meta}")
    table = Table(show_lines=True)
    for answers in found.iterations:
        table.add_column(
            f"iteration {answers.iteration}  {answers.version}  policy {answers.policy[:12]}",
            ratio=1,
        )
    for index in range(max(len(answers.rows) for answers in found.iterations)):
        table.add_row(*(_response(answers, index) for answers in found.iterations))
    PlainConsole().print(table)
    for answers in found.iterations:
        for damage in answers.damage:
            say(f"{answers.version}: {damage}")
        if not answers.rows and not answers.damage:
            say(f"{answers.version} did not ask this prompt")


def difference(found: Difference) -> None:
    """Print the differences between two versions as tables.

    What stayed the same is summed up in a few words.
    """
    say(f"{found.before} -> {found.after}")
    revision = [found.git_revision] if found.git_revision else []
    settings = [
        ("config", found.config),
        ("code", found.modules),
        ("package", [*found.packages, *revision]),
    ]
    for title, changes in settings:
        if changes:
            _print(
                (title, "before", "after"), [(change.name, *_values(change)) for change in changes]
            )
    same = [title for title, changes in settings if not changes]
    if same:
        say(f"the same: {', '.join(same)}", "")
    if found.recomputed:
        _print(
            ("computed anew", "why"),
            [(each.dataset, reasons(each.why)) for each in found.recomputed],
        )
    contents = [*map(_content, found.datasets), *map(_model, found.models)]
    titles = (
        "dataset or model",
        "before",
        "after",
        "added",
        "removed",
        "changed",
        "rows that differ, by column",
    )
    _print(titles, contents)
    if shifts := [_moved(each.name, shift) for each in found.datasets for shift in each.shifts]:
        _print(
            ("distribution", "of", "mean before", "mean after", "KS", "p", "effect, in sd"), shifts
        )
    if metrics := [_metric(change) for change in found.metrics if change.before != change.after]:
        _print(("metric", "before", "after", "difference"), metrics)
    shown = {metric.name for metric in shown_in("diff")}
    aligned = [
        (str(each.iteration), each.before, each.after, *_metric(change))
        for each in found.iterations
        for change in each.metrics
        if change.name in shown
    ]
    if aligned:
        _print(("iteration", "of", "and of", "metric", "before", "after", "difference"), aligned)


def _print(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    PlainConsole().print(table)
    say("")


def _node(node: Node, called: str) -> Text:
    title, detail = node.caption()
    computed = ""
    if node.computed_by is not None:
        seconds = node.provenance.get("seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        others = f", one of {node.computations} computations" if node.computations > 1 else ""
        computed = f"  computed by {node.computed_by['stage']}{took}{others}"
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in list(node.numbers.items())[:4])
    origin = node.provenance.get("origin") or node.provenance.get("source")
    said = [f"  {each}" for each in (numbers, f"from {_place(origin)}" if origin else "") if each]
    name = (f"{called}: " if called else "", (title, STYLES[node.kind]), f"  {detail}")
    lines = [_line(*name, *((each, "dim") for each in (computed, *said)))]
    lines += [
        _line((f"{file['name']}  {file['bytes']} bytes  sha256 {file['sha256']}", "dim"))
        for file in node.files
    ]
    if node.prompt is not None:
        lines.append(_line((node.prompt["prompt"], "dim")))
    if node.elsewhere:
        lines.append(_line((node.elsewhere, "bold")))
    if node.damage:
        lines.append(_line((f"MISSING OR DAMAGED: {node.damage}", "bold red")))
    return Text("\n").join(lines)


def _line(*parts: str | tuple[str, str]) -> Text:
    """Join texts, each with or without a style, on one line."""
    return Text.assemble(
        *(
            harmless(part) if isinstance(part, str) else (harmless(part[0]), part[1])
            for part in parts
        )
    )


def _place(origin: str | Mapping[str, str]) -> str:
    """Return where something came from.

    That is a path, or a name on the Hub and its commit.
    """
    if isinstance(origin, str):
        return origin
    return (
        origin["path"]
        if "path" in origin
        else f"{origin['hub']} at commit {origin.get('commit', 'unknown')[:12]}"
    )


def _response(answers: Answers, index: int) -> Text:
    if index >= len(answers.rows):
        return Text("")
    row = answers.rows[index]
    response = str(row.get("response"))
    lines = [_line((response if len(response) <= LONGEST else f"{response[:LONGEST]}…", "bold"))]
    drawn = f"step {row['step']}, {row['drawn_from']}" if "step" in row else ""
    judged = [
        f"{title} {_number(row[name])}"
        for title, name in (
            ("reward", "reward"),
            ("win rate", "win_rate"),
            ("rank", "rank"),
            ("accuracy", "accuracy"),
        )
        if row.get(name) is not None
    ]
    scored = (
        f"logp {_number(row['logp_policy'])}, reference {_number(row['logp_reference'])}"
        if "logp_policy" in row
        else ""
    )
    beside = (
        f"beside {str(row['response_reference'])[:LONGEST]!r}"
        if row.get("response_reference") is not None
        else ""
    )
    further = (drawn, "  ".join([*judged, str(row.get("role") or "")]).strip(), scored, beside)
    return Text("\n").join([*lines, *(_line(line) for line in further if line)])


def _content(found: DatasetDifference) -> Sequence[str]:
    before, after = (side.fingerprint[:12] if side else "-" for side in (found.before, found.after))
    if found.same or found.damage or not found.before or not found.after:
        return (
            found.name,
            before,
            after,
            found.damage or ("same" if found.same else "in one only"),
            "",
            "",
            "",
        )
    columns = ", ".join(
        [*(f"{name} {count}" for name, count in found.columns.items()), *found.other_columns]
    )
    return (
        found.name,
        before,
        after,
        *map(str, (found.added, found.removed, found.changed)),
        columns,
    )


def _model(found: Change) -> Sequence[str]:
    return (
        found.name,
        *_values(found),
        "same" if found.before == found.after else "other",
        "",
        "",
        "",
    )


def _moved(name: str, shift: Shift) -> Sequence[str]:
    means = (f"{mean:.4g}" for mean in (shift.before, shift.after))
    return (
        name,
        shift.quantity,
        *means,
        f"{shift.statistic:.3f}",
        f"{shift.p_value:.2g}",
        f"{shift.effect:+.2f}",
    )


def _values(change: Change) -> tuple[str, str]:
    before, after = (
        "-" if value is None else str(value) for value in (change.before, change.after)
    )
    return DIGEST.sub(r"\1", before), DIGEST.sub(r"\1", after)


def _metric(change: Change) -> tuple[str, str, str, str]:
    before, after = change.before, change.after
    known = [side["value"] for side in (before, after) if side and side["value"] is not None]
    apart = f"{known[1] - known[0]:+.4f}" if len(known) == 2 else "-"
    return change.name, _interval(before), _interval(after), apart


def _interval(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry["value"] is None:
        return "-"
    return f"{entry['value']:.4f}" + (
        "" if entry["low"] is None else f" [{entry['low']:.4f}, {entry['high']:.4f}]"
    )


def _number(value: float) -> str:
    return f"{value:.4g}"
