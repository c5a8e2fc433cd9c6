"""A lineage as text that others draw, Mermaid, and as a drawing, SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Final

from wind.audit.lineage import Lineage, Node
from wind.audit.lineage.layers import Place, layout

WIDTH, HEIGHT = 176, 44  # of a box
GAP, BEND, DROP, MARGIN = 18, 12, 46, 24  # beside a box, beside a line, between layers, around all
LEGEND = 40
LOOKS: Final = {  # by kind: fill, line, and how the legend calls it
    "version": ("#fff3c4", "#b58900", "version"),
    "prompt": ("#f7e1ef", "#cc79a7", "prompt"),
    "dataset": ("#dcebf7", "#0072b2", "dataset"),
    "model": ("#fbe3d3", "#d55e00", "model"),
    "source": ("#d9f0e6", "#009e73", "source"),
    "missing": ("#ffffff", "#b00020", "missing or damaged"),
}
UNITS = {"dataset": "rows", "model": "weights", "source": "files"}


def mermaid(lineage: Lineage) -> str:
    """A Mermaid flowchart, from what came from outside downwards."""
    short = {name: f"n{index}" for index, name in enumerate(lineage.nodes)}
    lines = ["flowchart TD"]
    for name, node in lineage.nodes.items():
        title, detail = caption(node)
        text = "<br/>".join(_quoted(line) for line in (title, detail) if line)
        opening, closing = {
            "model": ("([", "])"),
            "source": ("[(", ")]"),
            "version": ("{{", "}}"),
        }.get(node.kind, ("[", "]"))
        lines.append(f'    {short[name]}{opening}"{text}"{closing}:::{_look(node)}')
    for name in lineage.nodes:
        for called, parent in lineage.parents(name):
            arrow = f'-->|"{_quoted(called)}"|' if called else "-->"
            lines.append(f"    {short[parent.id]} {arrow} {short[name]}")
    for look, (fill, line, _) in LOOKS.items():
        dashes = ",stroke-dasharray:4 3" if look == "missing" else ""
        lines.append(f"    classDef {look} fill:{fill},stroke:{line},color:#222{dashes}")
    return "\n".join(lines) + "\n"


def svg(lineage: Lineage) -> str:
    """A drawing of the graph: what came from outside on top, what was asked about at the bottom.

    A line is pale where a path over other boxes leads the same way.
    """
    nodes = list(lineage.nodes)
    called = {(parent.id, name): names for name in nodes for names, parent in lineage.parents(name)}
    placed = layout(nodes, called, WIDTH + GAP, BEND)
    x = {place: MARGIN + centre for place, centre in placed.x.items()}
    top = {
        place: MARGIN + LEGEND + index * (HEIGHT + DROP) for place, index in placed.layer.items()
    }
    right = (
        max(x[place] + (WIDTH + GAP if isinstance(place, str) else BEND) / 2 for place in x)
        + MARGIN
    )
    width = max(round(right), 560)  # the legend's
    height = round(max(top.values()) + HEIGHT + MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#222222">',
        f"<title>Lineage of {escape(lineage.nodes[lineage.root].name)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_legend(lineage),
        '<g fill="none" stroke="#7d8a93" stroke-width="1.2">',
    ]
    implied = _implied(sorted(nodes, key=placed.layer.__getitem__), list(placed.lines))
    for (parent, child), line in sorted(
        placed.lines.items(), key=lambda drawn: drawn[0] not in implied
    ):
        told = (
            f"{called[parent, child]}: {lineage.nodes[parent].name} in {lineage.nodes[child].name}"
        )
        pale = ' stroke="#d3dade"' if (parent, child) in implied else ""
        parts.append(f'<path d="{_path(line, x, top)}"{pale}><title>{escape(told)}</title></path>')
    parts.append("</g>")
    parts += [
        _box(lineage.nodes[name], x[name], top[name], is_root=name == lineage.root)
        for name in nodes
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def caption(node: Node) -> tuple[str, str]:
    """What a node is called, and what more there is to say of it."""
    if node.kind == "version":
        return node.name, f"iteration {node.count}"
    if node.kind == "prompt":
        return node.name, (node.prompt or {}).get("row") or ""
    noun, _, fingerprint = node.name.partition("/")
    outside = (
        node.files[0]["name"] + (f" and {len(node.files) - 1} more" if len(node.files) > 1 else "")
        if node.files
        else ""
    )
    unit = UNITS[node.kind] if node.count != 1 else UNITS[node.kind].removesuffix("s")
    count = f"{node.count:,}" if (node.count or 0) < 10**7 else f"{(node.count or 0) / 1e6:,.0f} M"
    return noun, f"{fingerprint}  {outside or f'{count} {unit}'}"


def _path(line: Sequence[Place], x: Mapping[Place, float], top: Mapping[Place, float]) -> str:
    """From the lower edge of the first box, through the layers that the line passes, to the upper
    edge of the last.
    """
    start = line[0]
    path = f"M{x[start]:.1f} {top[start] + HEIGHT:.1f}"
    for above, place in pairwise(line):
        middle = top[place] - DROP / 2
        path += f"C{x[above]:.1f} {middle:.1f} {x[place]:.1f} {middle:.1f} {x[place]:.1f} {top[place]:.1f}"
        if place is not line[-1]:
            path += f"V{top[place] + HEIGHT:.1f}"
    return path


def _implied(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of `edges` whose parent is also an ancestor of another parent of the child; of `nodes`,
    parents come first.
    """
    parents: dict[str, list[str]] = {name: [] for name in nodes}
    for parent, child in edges:
        parents[child].append(parent)
    above: dict[str, set[str]] = {}
    for name in nodes:
        above[name] = set(parents[name]).union(*(above[parent] for parent in parents[name]))
    return {
        (parent, child)
        for parent, child in edges
        if any(parent in above[other] for other in parents[child])
    }


def _box(node: Node, x: float, top: float, *, is_root: bool) -> str:
    title, detail = caption(node)
    fill, line, _ = LOOKS[_look(node)]
    dashes = ' stroke-dasharray="5 3"' if node.damage else ""
    told = node.damage or "; ".join(
        [node.id, *(f"{name} {value:.6g}" for name, value in node.numbers.items())]
    )
    return (
        f"<g><title>{escape(told)}</title>"
        f'<rect x="{x - WIDTH / 2:.1f}" y="{top:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{line}"'
        f' stroke-width="{2.4 if is_root else 1.1}"{dashes}/>'
        f'<text x="{x:.1f}" y="{top + 18:.1f}" text-anchor="middle" font-weight="bold" font-size="12">{escape(title)}</text>'
        f'<text x="{x:.1f}" y="{top + 34:.1f}" text-anchor="middle" fill="#555555" font-size="10">'
        f"{escape(_cut(detail))}</text></g>"
    )


def _legend(lineage: Lineage) -> list[str]:
    parts, x = [], MARGIN
    for look in LOOKS:
        if any(_look(node) == look for node in lineage.nodes.values()):
            fill, line, title = LOOKS[look]
            dashes = ' stroke-dasharray="3 2"' if look == "missing" else ""
            parts.append(
                f'<rect x="{x}" y="{MARGIN - 8}" width="14" height="14" rx="3" fill="{fill}" stroke="{line}"{dashes}/>'
            )
            parts.append(f'<text x="{x + 20}" y="{MARGIN + 3}">{title}</text>')
            x += 34 + 7 * len(title)
    return parts


def _look(node: Node) -> str:
    return "missing" if node.damage else node.kind


def _cut(text: str, length: int = 32) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _quoted(text: str) -> str:
    """`text` for a quoted Mermaid label, where only these would end it or start a tag."""
    for sign, name in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(sign, name)
    return text
