"""Lineage as a Mermaid flowchart, which GitHub and mermaid-cli draw."""

from typing import Final

from wind.audit.lineage import Lineage, Node

COLORS: Final = {  # fill and outline, by what a node is
    "version": ("#fff3c4", "#b58900"),
    "prompt": ("#f7e1ef", "#cc79a7"),
    "dataset": ("#dcebf7", "#0072b2"),
    "model": ("#fbe3d3", "#d55e00"),
    "source": ("#d9f0e6", "#009e73"),
    "missing": ("#ffffff", "#b00020"),
}
SHAPES: Final = {"model": ("([", "])"), "source": ("[(", ")]"), "version": ("{{", "}}")}


def flowchart(lineage: Lineage) -> str:
    """Write a lineage as Mermaid text, ancestors at the top.

    A node that is missing or damaged has a dashed outline.
    """
    short = {name: f"n{index}" for index, name in enumerate(lineage.nodes)}
    lines = ["flowchart TD"]
    for name, node in lineage.nodes.items():
        text = "<br/>".join(_quoted(line) for line in node.caption() if line)
        opening, closing = SHAPES.get(node.kind, ("[", "]"))
        lines.append(f'    {short[name]}{opening}"{text}"{closing}:::{_look(node)}')
    for name in lineage.nodes:
        for called, parent in lineage.parents(name):
            arrow = f'-->|"{_quoted(called)}"|' if called else "-->"
            lines.append(f"    {short[parent.id]} {arrow} {short[name]}")
    for look, (fill, line) in COLORS.items():
        dashes = ",stroke-dasharray:4 3" if look == "missing" else ""
        lines.append(f"    classDef {look} fill:{fill},stroke:{line},color:#222{dashes}")
    return "\n".join(lines) + "\n"


def _look(node: Node) -> str:
    return "missing" if node.damage else node.kind


def _quoted(text: str) -> str:
    """Escape text for a quoted Mermaid label.

    Only these characters would end the label or start a tag in it.
    """
    for sign, name in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(sign, name)
    return text
