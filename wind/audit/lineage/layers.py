"""A place for every node of a graph: in layers, parents above children, with few crossings and
short lines.

The method of Sugiyama, Tagawa and Toda: layers by the longest path, a bend in each layer that a
line passes, order within a layer by the mean place of the neighbours, and coordinates that are the
least squares of the distances to them. The lines from one parent share their bends. All of it is
deterministic.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 24

Bend = tuple[str, int]  # a parent, and a layer below it that lines from it pass
Place = str | Bend


@dataclass(frozen=True)
class Layout:
    """Where everything stands: the layer of each place from the top, its horizontal centre, and the
    line of each edge.
    """

    layer: Mapping[Place, int]
    x: Mapping[Place, float]
    lines: Mapping[tuple[str, str], Sequence[Place]]  # from parent to child, over the bends


def layout(
    nodes: Iterable[str], edges: Iterable[tuple[str, str]], width: float, bend_width: float
) -> Layout:
    """The layout of a graph; nodes are `width` wide with their margin, the lines between them
    `bend_width`.

    An edge that would close a circle has no line: content that was made of itself, as by a training
    that changed nothing.
    """
    names = list(nodes)
    arrows = _acyclic(names, dict.fromkeys(edges))
    parents: dict[str, list[str]] = {name: [] for name in names}
    children: dict[str, list[str]] = {name: [] for name in names}
    for parent, child in arrows:
        parents[child].append(parent)
        children[parent].append(child)
    layer = _layers(names, parents, children)
    lines: dict[tuple[str, str], list[Place]] = {}
    for parent, child in arrows:
        bends: list[Place] = [(parent, index) for index in range(layer[parent] + 1, layer[child])]
        layer |= {bend: layer[parent] + step for step, bend in enumerate(bends, 1)}
        lines[parent, child] = [parent, *bends, child]
    above: dict[Place, list[Place]] = {place: [] for place in layer}
    below: dict[Place, list[Place]] = {place: [] for place in layer}
    for upper, lower in dict.fromkeys(step for line in lines.values() for step in pairwise(line)):
        above[lower].append(upper)
        below[upper].append(lower)
    rows: list[list[Place]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for place, index in layer.items():
        rows[index].append(place)
    x = _ordered(rows, above, below)
    widths = {place: width if isinstance(place, str) else bend_width for place in layer}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            x |= _spaced(
                row, [_mean([*above[place], *below[place]], x, x[place]) for place in row], widths
            )
    left = min((x[place] - widths[place] / 2 for place in layer), default=0.0)
    return Layout(layer, {place: centre - left for place, centre in x.items()}, lines)


def _acyclic(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of `edges` that a walk from children to parents meets without coming back to where it
    is.
    """
    parents: dict[str, list[str]] = {name: [] for name in names}
    arrows = list(edges)
    for parent, child in arrows:
        parents[child].append(parent)
    closing: set[tuple[str, str]] = set()
    done: set[str] = set()
    for start in names:
        # a stack, in order
        path: dict[str, Iterator[str]] = {} if start in done else {start: iter(parents[start])}
        while path:
            child = next(reversed(path))
            above = next(path[child], None)
            if above is None:
                done.add(child)
                del path[child]
            elif above in path:
                closing.add((above, child))
            elif above not in done:
                path[above] = iter(parents[above])
    return [arrow for arrow in arrows if arrow not in closing]


def _layers(
    names: Sequence[str], parents: Mapping[str, list[str]], children: Mapping[str, list[str]]
) -> dict[Place, int]:
    """The longest path from the top to each node; one without parents stands right above its first
    child.
    """
    layer: dict[Place, int] = {}
    waiting = {name: len(parents[name]) for name in names}
    ready = [name for name in names if not parents[name]]
    for name in ready:  # grows while it is read
        layer[name] = 1 + max((layer[parent] for parent in parents[name]), default=-1)
        for child in children[name]:
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    for name in names:
        if not parents[name] and children[name]:
            layer[name] = min(layer[child] for child in children[name]) - 1
    return layer


def _ordered(
    rows: list[list[Place]], above: Mapping[Place, list[Place]], below: Mapping[Place, list[Place]]
) -> dict[Place, float]:
    """Sort each of `rows`, in place, by the mean place of the neighbours, from above and from below
    in turn; the places.
    """
    x: dict[Place, float] = {place: float(index) for row in rows for index, place in enumerate(row)}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for row in rows if down else rows[::-1]:
            means = {place: _mean(neighbours[place], x, x[place]) for place in row}
            row.sort(key=lambda place: means[place])
            x |= {place: float(index) for index, place in enumerate(row)}
    return x


def _mean(places: Sequence[Place], x: Mapping[Place, float], default: float) -> float:
    return sum(x[place] for place in places) / len(places) if places else default


def _spaced(
    row: Sequence[Place], wanted: Sequence[float], widths: Mapping[Place, float]
) -> dict[Place, float]:
    """The centres nearest to `wanted`, in least squares, that keep the order of `row` and overlap
    nowhere.
    """
    offset, offsets = 0.0, []
    for index, place in enumerate(row):
        offset += (widths[row[index - 1]] + widths[place]) / 2 if index else 0.0
        offsets.append(offset)
    blocks: list[tuple[float, int]] = []  # of places that touch: their mean and how many they are
    for centre, offset in zip(wanted, offsets, strict=True):
        mean, count = centre - offset, 1
        while blocks and blocks[-1][0] >= mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return {place: mean + offset for place, mean, offset in zip(row, means, offsets, strict=True)}
