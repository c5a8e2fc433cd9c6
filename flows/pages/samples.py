"""The reading page's data: as the server answers it, and as files of a bundle hold it.

The same page reads both (`samples.js`). In a bundle, `windSamples(NAME, VALUE)` hands over a piece
of data: browsers let a page from a file share run scripts beside it, and read nothing else.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
from markupsafe import Markup

from data_checks.results import contents
from flows.pages import Link, fragment, render
from flows.pages.glance import Embedded
from wind.errors import ConfigError, DatasetError
from wind.inspection.detail import Detail, Response, Verdict
from wind.inspection.fields import table
from wind.inspection.query import SIZE, Page
from wind.inspection.reader import Reader
from wind.inspection.words import difference, lengths
from wind.records import Record
from wind.store.datasets import Store
from wind.store.versions import Version

# Prompts in one file of a bundle, and rows in one file of its index.
CHUNK: Final = 200
INDEX_CHUNK: Final = 5000
# Characters of a prompt in a list of prompts.
SHOWN: Final = 400
# Responses that one page holds at most: some ten megabytes.
LIMIT: Final = 20_000
STYLES: Final = ("samples.css",)
SCRIPTS: Final = ("samples.js",)
# By the names that the page has for them.
RECORDS: Final[dict[str, type[Record]]] = {
    "detail": Detail,
    "response": Response,
    "verdict": Verdict,
}
# The folder of a bundle's data.
DATA: Final = "samples"
# What a reader writes stays where it is written.
BESIDE: Final = ("flag", "note")


def failures(store: Store, version: Version) -> Mapping[str, int]:
    """Count the failed expectations that name a row of each prompt.

    A check names twenty rows at most. Results that cannot be read count as none.
    """
    found: Counter[str] = Counter()
    for name, key in version.check_results.items():
        handle = version.content.datasets.get(name)
        try:
            content = None if handle is None else contents(store, handle, key)
        except DatasetError:
            continue
        frames = (content or {}).get("frames", {})
        results = [each for frame in frames.values() for each in frame.get("results", ())]
        for each in results:
            rows = each.get("result", {}).get("partial_unexpected_index_list") or ()
            if not each.get("success"):
                found.update({row["prompt_id"] for row in rows if "prompt_id" in row})
    return found


def open_reader(store: Store) -> Reader:
    """Open a reader that knows what checks found."""
    return Reader(store, failures)


def name_of(version: Version) -> str:
    """Return RUN@NUMBER."""
    return f"{version.run}@{version.number}"


def listed(versions: Sequence[Version]) -> list[dict[str, Any]]:
    """Return versions as the page lists them."""
    return [
        {"name": name_of(each), "iteration": each.content.iteration, "run": each.run}
        for each in versions
    ]


def rows(page: Page) -> dict[str, Any]:
    """Return a page of prompts, their texts shortened."""
    shown = page.rows.with_columns(pl.col("text").str.slice(0, SHOWN))
    return {"total": page.total, "rows": shown.to_dicts()}


def prompt(reader: Reader, version: Version, prompt_id: str) -> dict[str, Any]:
    """Return everything about one prompt."""
    return reader.detail(version, prompt_id).model_dump(mode="json")


def over_iterations(
    reader: Reader, version: Version, prompt_id: str, sample_index: int
) -> list[dict[str, Any]]:
    """Return one sample over the iterations, with differences by length."""
    return [
        {
            **step.model_dump(mode="json", exclude={"difference"}),
            "difference": lengths(step.difference),
        }
        for step in reader.over_iterations(version, prompt_id, sample_index)
    ]


def tokens(reader: Reader, version: Version, prompt_id: str) -> dict[str, Any]:
    """Return a prompt and its responses with special tokens."""
    asked, found = reader.with_special_tokens(version, prompt_id)
    return {"prompt": asked, "responses": found}


def page(versions: Sequence[Version], links: Sequence[Link] = ()) -> bytes:
    """Render the page on which samples are read, served beside its data."""
    return _page(settings(versions, source="server"), links, {"connect-src": "'self'"})


def embedded_samples(
    store: Store, versions: Sequence[Version], limit: int = LIMIT
) -> Embedded | None:
    """Return the reading page, with all of its data, as a part of another page.

    None if `versions`, a chain, have more than `limit` responses together: then only a folder can
    hold them.
    """
    if sum(_responses(version) for version in versions) > limit:
        return None
    told = settings(versions, source="page")
    pieces = dict(_pieces(open_reader(store), versions, told))
    html = fragment("reader.html.j2", settings=_block(told), pieces=_block(pieces))
    return Embedded(html, styles=STYLES, scripts=SCRIPTS)


def write_samples(
    store: Store, versions: Sequence[Version], folder: Path, links: Sequence[Link] = ()
) -> Path:
    """Write the reading page of `versions`, a chain, into `folder`, with its data beside it.

    The page is `samples.html`, its data are scripts in `samples/`. Returns the page.
    """
    told = settings(versions, source="files") | {"folder": DATA}
    for name, value in _pieces(open_reader(store), versions, told):
        path = folder / DATA / f"{name}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"windSamples({json.dumps(name)},{json_text(value)});\n", encoding="ascii")
    written = folder / "samples.html"
    written.write_bytes(_page(told, links, {"script-src": "'self'"}))
    return written


def settings(versions: Sequence[Version], *, source: str) -> dict[str, Any]:
    """Return what the page needs to begin.

    `source` says where its data come from: server, files or page.
    """
    return {
        "source": source,
        "fields": table(),
        "versions": listed(versions),
        "size": SIZE,
        "chunk": CHUNK,
        # what a field that is left out stands for
        "defaults": {
            name: {
                field: told.default
                for field, told in record.model_fields.items()
                if not told.is_required()
            }
            for name, record in RECORDS.items()
        },
    }


def json_text(value: Any) -> str:
    """Return JSON in ASCII that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _block(value: Any) -> Markup:
    return Markup(json_text(value))


def _page(told: Mapping[str, Any], links: Sequence[Link], sources: Mapping[str, str]) -> bytes:
    run = told["versions"][-1]["run"]
    return render(
        "samples.html.j2",
        title=f"Samples of {run}",
        links=links,
        styles=STYLES,
        scripts=SCRIPTS,
        sources=sources,
        settings=_block(told),
        pieces=None,
    )


def _responses(version: Version) -> int:
    names = ("generations", "eval_generations", "rollouts")
    datasets = version.content.datasets
    return sum(datasets[name].rows for name in names if name in datasets)


def _pieces(
    reader: Reader, versions: Sequence[Version], told: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the data of the page, piece by piece: the indexes, then prompts with all they have.

    Tells `told` how many pieces each index has.
    """
    ids: list[list[str]] = []
    for place, version in enumerate(versions):
        frame = reader.frame(version).drop(BESIDE)
        ids.append(frame["prompt_id"].to_list())
        parts = range(0, max(len(frame), 1), INDEX_CHUNK)
        told["versions"][place]["parts"] = len(parts)
        for part, begin in enumerate(parts):
            yield (
                f"{place}/index-{part}",
                frame[begin : begin + INDEX_CHUNK].to_dict(as_series=False),
            )
    # texts of the last iteration before that has them, by prompt and sample
    before: dict[str, dict[int, str]] = {}
    is_same = all(each == ids[0] for each in ids)
    longest = max(map(len, ids))
    # Iteration after iteration: where they have the same prompts, chunk by chunk, so that few texts
    # are in memory at once.
    for chunks in (
        [[begin] for begin in range(0, longest, CHUNK)] if is_same else [range(0, longest, CHUNK)]
    ):
        for place, version in enumerate(versions):
            for begin in chunks:
                if begin < len(ids[place]):
                    yield (
                        f"{place}/prompts-{begin // CHUNK}",
                        [
                            _everything(
                                reader, version, prompt_id, before.setdefault(prompt_id, {})
                            )
                            for prompt_id in ids[place][begin : begin + CHUNK]
                        ],
                    )
        before.clear()


def _everything(
    reader: Reader, version: Version, prompt_id: str, before: dict[int, str]
) -> dict[str, Any]:
    """Return a prompt in `version`, with differences from `before` and special tokens.

    Afterwards `before` has the texts of this version.
    """
    told = reader.detail(version, prompt_id)
    differences = [
        lengths(difference(before[each.sample_index], each.response))
        if each.sample_index in before
        else []
        for each in told.responses
    ]
    before.update({each.sample_index: each.response for each in reversed(told.responses)})
    return {
        "detail": told.model_dump(mode="json", exclude_defaults=True),
        "differences": differences,
        "tokens": _short_tokens(reader, version, told),
    }


def _short_tokens(reader: Reader, version: Version, told: Detail) -> dict[str, Any] | None:
    """Return what `tokens` does, 0 for a stretch that is all of the response; None without any."""
    try:
        asked, found = reader.with_special_tokens(version, told.prompt_id)
    except (ConfigError, DatasetError):
        return None
    shortened = [
        [
            [0 if not is_special and text == each.response else text, is_special]
            for text, is_special in parts
        ]
        for each, parts in zip(told.responses, found, strict=False)
    ]
    return {"prompt": asked, "responses": shortened}
