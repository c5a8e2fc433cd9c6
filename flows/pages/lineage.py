"""Lineage drawn as SVG: what an iteration was made from, in layers from the top.

Where one thing was made from another directly and through others, only the longer way is drawn.
The policy that the iteration began with, and what else earlier iterations made, are drawn without
their own ancestors.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from markupsafe import Markup, escape

from flows.pages import visible
from wind.audit.lineage import Lineage, Node
from wind.store.handles import Dataset
from wind.store.versions import Version

BOX: Final = (170, 40)  # pixels
GAP: Final = (26, 30)  # between boxes of a layer, and between layers
MARGIN: Final = 6
SWEEPS: Final = 8
NARROW: Final = 0.25  # the share of a box's width that a line passing through a layer takes
LONGEST: Final = 24  # characters in a box


@dataclass
class Drawing:
    """Nodes in layers, with lines between neighboring layers.

    A line that passes layers has a node without a box in each of them.
    """

    layers: list[list[str]]
    above: dict[str, list[str]] = field(default_factory=dict)  # by node
    below: dict[str, list[str]] = field(default_factory=dict)


def drawn(
    lineage: Lineage,
    version: Version,
    before: Version | None,
    datasets: Mapping[str, Dataset],
) -> Markup:
    """Draw the lineage of `version`, which continues `before`.

    `datasets` are those of the version and of its reference, by name.
    """
    borders = {f"models/{version.content.model_in.fingerprint}"} if before else set()
    parents = reduced(_parents(lineage, borders))
    names = {node: _called(lineage, node, version, before, datasets) for node in parents}
    drawing = layered(parents)
    places = placed(drawing, set(parents))
    width = max(x for x, _ in places.values()) + BOX[0] / 2 + MARGIN
    height = max(y for _, y in places.values()) + BOX[1] + MARGIN
    lines = [
        _line(places[parent], places[child], parent in parents, child in parents)
        for child, above in drawing.above.items()
        for parent in above
    ]
    boxes = [_box(lineage.nodes[node], *names[node], places[node]) for node in parents]
    told = (
        f"Lineage of {version.run}@{version.number}: {len(parents)} datasets, models and sources, "
        "each below what it was made from."
    )
    return Markup(
        f'<svg class="lineage" role="img" aria-labelledby="lineage-title" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f'<title id="lineage-title">{escape(told)}</title>{"".join(lines)}{"".join(boxes)}</svg>'
    )


def steps(
    lineage: Lineage,
    version: Version,
    before: Version | None,
    datasets: Mapping[str, Dataset],
) -> list[tuple[str, str, str]]:
    """List what the drawing shows: name, detail, and what it was made from."""
    borders = {f"models/{version.content.model_in.fingerprint}"} if before else set()
    parents = _parents(lineage, borders)
    names = {node: _called(lineage, node, version, before, datasets) for node in parents}
    layers = layered(reduced(parents)).layers
    return [
        (*names[node], ", ".join(names[parent][0] for parent in parents[node]) or "–")
        for layer in layers
        for node in layer
        if node in parents
    ]


def reduced(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the parents of each node without those that are ancestors by a longer way."""
    ancestors: dict[str, set[str]] = {}

    def ancestors_of(node: str) -> set[str]:
        if node not in ancestors:
            ancestors[node] = set()  # a forged lineage may go in circles
            ancestors[node] = {
                each for parent in parents[node] for each in (parent, *ancestors_of(parent))
            }
        return ancestors[node]

    return {
        node: [
            parent
            for parent in above
            if not any(parent in ancestors_of(other) for other in above if other != parent)
        ]
        for node, above in parents.items()
    }


def layered(parents: Mapping[str, Sequence[str]]) -> Drawing:
    """Put nodes in layers, each below its parents, and order them so that few lines cross."""
    depth: dict[str, int] = {}

    def depth_of(node: str) -> int:
        if node not in depth:
            depth[node] = 0
            depth[node] = 1 + max((depth_of(parent) for parent in parents[node]), default=-1)
        return depth[node]

    for node in parents:
        depth_of(node)
    for node in parents:
        # what has no parents stands right above the first of its children
        children = [depth[child] for child, above in parents.items() if node in above]
        if not parents[node] and children:
            depth[node] = min(children) - 1
    drawing = Drawing([[] for _ in range(max(depth.values()) + 1)])
    for node in parents:
        drawing.layers[depth[node]].append(node)
    for child, above in parents.items():
        for parent in above:
            way = [parent]
            for layer in range(depth[parent] + 1, depth[child]):
                way.append(f"{parent} {child} {layer}")
                drawing.layers[layer].append(way[-1])
            for upper, lower in zip(way, [*way[1:], child], strict=True):
                drawing.above.setdefault(lower, []).append(upper)
                drawing.below.setdefault(upper, []).append(lower)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for index in range(len(drawing.layers))[:: 1 if down else -1]:
            beside = index - 1 if down else index + 1
            if not 0 <= beside < len(drawing.layers):
                continue
            place = {node: at for at, node in enumerate(drawing.layers[beside])}
            near = drawing.above if down else drawing.below
            own = {node: at for at, node in enumerate(drawing.layers[index])}
            drawing.layers[index].sort(
                key=lambda node: _mean([place[each] for each in near.get(node, [])], own[node])
            )
    return drawing


def placed(drawing: Drawing, boxed: Collection[str]) -> dict[str, tuple[float, float]]:
    """Return the middle of the upper side of each node, in pixels."""
    widths = {
        node: BOX[0] * (1.0 if node in boxed else NARROW)
        for layer in drawing.layers
        for node in layer
    }
    across: dict[str, float] = {}
    for layer in drawing.layers:
        x = 0.0
        for node in layer:
            across[node] = x + widths[node] / 2
            x += widths[node] + GAP[0]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in drawing.layers[:: 1 if down else -1]:
            near = drawing.above if down else drawing.below
            wanted = [
                _mean([across[each] for each in near.get(node, [])], across[node]) for node in layer
            ]
            across |= _apart(layer, wanted, widths)
    left = min(across[node] - widths[node] / 2 for node in across) - MARGIN
    return {
        node: (across[node] - left, MARGIN + index * (BOX[1] + GAP[1]))
        for index, layer in enumerate(drawing.layers)
        for node in layer
    }


def _apart(
    layer: Sequence[str], wanted: Sequence[float], widths: Mapping[str, float]
) -> dict[str, float]:
    """Place the nodes of a layer as near to the `wanted` places as their widths allow.

    Nodes that would overlap are moved together, around the mean of what they want.
    """
    groups: list[tuple[list[str], list[float]]] = []  # nodes, and what each wants of the first
    for node, place in zip(layer, wanted, strict=True):
        groups.append(([node], [place]))
        while len(groups) > 1 and _end(groups[-2], widths) > _start(groups[-1], widths):
            nodes, places = groups.pop()
            first, before = groups[-1]
            offset = _length(first, widths)
            first += nodes
            before += [each - offset for each in places]
    found = {}
    for nodes, places in groups:
        x = _mean(places, 0.0)
        for index, node in enumerate(nodes):
            found[node] = x
            if index + 1 < len(nodes):
                x += (widths[node] + widths[nodes[index + 1]]) / 2 + GAP[0]
    return found


def _length(nodes: Sequence[str], widths: Mapping[str, float]) -> float:
    """Return how far the next node stands from the middle of the first, but for its half."""
    return sum(widths[node] + GAP[0] for node in nodes) - widths[nodes[0]] / 2 + BOX[0] / 2


def _start(group: tuple[list[str], list[float]], widths: Mapping[str, float]) -> float:
    return _mean(group[1], 0.0) - widths[group[0][0]] / 2


def _end(group: tuple[list[str], list[float]], widths: Mapping[str, float]) -> float:
    nodes, places = group
    return _mean(places, 0.0) - widths[nodes[0]] / 2 + sum(widths[node] + GAP[0] for node in nodes)


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _parents(lineage: Lineage, borders: Collection[str]) -> dict[str, list[str]]:
    """Return the parents of all nodes but the root, as far as `borders`."""
    above: dict[str, list[str]] = {}
    for edge in lineage.edges:
        above.setdefault(edge.child, []).append(edge.parent)
    found: dict[str, list[str]] = {}
    waiting = list(dict.fromkeys(above.get(lineage.root, [])))
    while waiting:
        node = waiting.pop(0)
        if node in found:
            continue
        found[node] = [] if node in borders else list(dict.fromkeys(above.get(node, [])))
        waiting += found[node]
    return found


def _called(
    lineage: Lineage,
    node: str,
    version: Version,
    before: Version | None,
    datasets: Mapping[str, Dataset],
) -> tuple[str, str]:
    """Return what a node is called in this iteration, and a detail."""
    title, detail = lineage.nodes[node].caption()
    content = version.content
    first = "initial policy"
    policies = {
        content.reference.fingerprint: first if _is_first(version) else "reference",
        content.model_out.fingerprint: f"policy after {content.iteration}",
        content.model_in.fingerprint: f"policy after {content.iteration - 1}" if before else first,
    }
    kind, _, fingerprint = node.partition("/")
    if kind == "models":
        used = next((edge.name for edge in lineage.edges if edge.parent == node), title)
        return policies.get(fingerprint, f"reward {used}"), detail
    names = [
        name
        for name, handle in datasets.items()
        if handle.name == kind and handle.fingerprint == fingerprint
    ]
    return names[0] if names else "source" if kind == "sources" else title, detail


def _is_first(version: Version) -> bool:
    reference = version.content.recipe.get("reference")
    return isinstance(reference, dict) and reference.get("kind") == "initial"


def _line(
    upper: tuple[float, float], lower: tuple[float, float], from_box: bool, to_box: bool
) -> str:
    x, y = upper[0], upper[1] + BOX[1]
    start = f"M{x:.1f},{y if from_box else upper[1]:.1f}L{x:.1f},{y:.1f}"
    middle = (y + lower[1]) / 2
    curve = f"C{x:.1f},{middle:.1f} {lower[0]:.1f},{middle:.1f} {lower[0]:.1f},{lower[1]:.1f}"
    arrow = f'<path class="tip" d="M{lower[0]:.1f},{lower[1]:.1f}l-4,-7h8Z"/>' if to_box else ""
    return f'<path class="line" d="{start}{curve}"/>{arrow}'


def _box(node: Node, name: str, detail: str, place: tuple[float, float]) -> str:
    x, y = place[0] - BOX[0] / 2, place[1]
    kind = "missing" if node.damage else node.kind
    round_ = {"model": 20, "source": 2}.get(node.kind, 6)
    return (
        f'<g class="{kind}"><title>{escape(visible(node.name))}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX[0]}" height="{BOX[1]}" rx="{round_}"/>'
        f'<text x="{place[0]:.1f}" y="{y + 17:.1f}">{escape(_short(visible(name)))}</text>'
        f'<text class="detail" x="{place[0]:.1f}" y="{y + 31:.1f}">'
        f"{escape(_short(visible(detail), 28))}</text></g>"
    )


def _short(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
