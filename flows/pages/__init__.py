"""Pages: one layout for everything that people look at in a browser.

A page is one file. Styles and scripts are in it, named by their digests in its policy, so that a
browser runs nothing else and fetches nothing from anywhere. Text that comes from data cannot leave
its place: it is escaped, its control characters and marks of direction are shown as Python escapes
them, and the policy forbids whatever might be left.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE: Final = Path(__file__).parent
# how `wind report` recognizes a file that it may replace
GENERATOR: Final = '<meta name="generator" content="wind-distillation">'
STYLES: Final = ("style.css",)
SCRIPTS: Final = ("page.js",)
# Control characters except tab and newline, marks of direction, what has no width (but joiners,
# which emoji and some scripts need), and halves of characters.
UNSEEN: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


class Link(NamedTuple):
    """An entry of a page's navigation."""

    title: str
    href: str
    is_here: bool = False


def render(
    template: str,
    *,
    title: str,
    links: Sequence[Link] = (),
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    sources: Mapping[str, str] | None = None,
    **values: Any,
) -> bytes:
    """Render a template of this folder that extends `base.html.j2`.

    Args:
        template: the name of its file.
        title: of the page.
        links: the navigation between pages.
        styles: names of files of this folder, after those of all pages.
        scripts: likewise; they run when all of the page is there.
        sources: what the page's policy allows beyond its own content, by directive, such as
            `{"connect-src": "'self'"}` for a page that is served.
        values: what the template needs.
    """
    inline = {
        "style": [_text(name) for name in (*STYLES, *styles)],
        "script": [_text(name) for name in (*SCRIPTS, *scripts)],
    }
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            links=links,
            policy=_policy(inline, sources or {}),
            styles=[Markup(text) for text in inline["style"]],
            scripts=[Markup(text) for text in inline["script"]],
            generator=Markup(GENERATOR),
            **values,
        )
        .encode()
    )


def fragment(template: str, **values: Any) -> Markup:
    """Render a template of this folder that is a part of a page."""
    return Markup(_environment().get_template(template).render(**values))


def visible(text: str) -> str:
    """Return `text` with what would be invisible, or would move other text, escaped.

    Line breaks and tabs are kept.
    """
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(inline: Mapping[str, Sequence[str]], sources: Mapping[str, str]) -> str:
    """Return the Content Security Policy of a page.

    It allows the page's own styles and scripts, images within it, and `sources`.
    """
    allowed = {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        **{
            f"{kind}-src": " ".join(f"'sha256-{_digest(text)}'" for text in texts)
            for kind, texts in inline.items()
        },
    }
    for directive, more in sources.items():
        allowed[directive] = f"{allowed.get(directive, '')} {more}".strip()
    return "; ".join(f"{directive} {value}" for directive, value in allowed.items())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
