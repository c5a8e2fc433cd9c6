"""The reading page in a real browser: served, from a folder, and out of a single file."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from benchmarks.pages import make_run
from flows.pages import samples
from flows.pages.glance import glance
from tests.browser import Browser, browser, program
from tests.wind.reading_case import PROMPTS, make_versions
from wind.inspection.query import Query
from wind.inspection.reader import Reader
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Versions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="there is no browser"),
]
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
    "\x1b[31m\u202egpj.exe\u2066\x00\x7f\ufffd\\ud800 </script> --> ]]> {{ 7 * 7 }} "
)
LINE = "x" * 1_000_000
READY = "document.querySelector('[data-reader]')?.dataset.ready"
IDS = "[...document.querySelectorAll('[data-list] a')].map(each => each.dataset.id)"
QUERIES = [
    Query(),
    Query(sort="-reward_gain"),
    Query(sort="text"),
    Query(sort="-win_rate", page=2),
    Query(where="reward_gain > 0 and split = eval", sort="reward_gain"),
    Query(where="not reward_gain > 0", sort="-tokens_max"),
    Query(where="rank_flips >= 0.5 or truncated > 0", sort="-rank_flips"),
    Query(where="reward_gain = none and (tokens_mean < 60 or distinct != 8)"),
    Query(where='text ~ "RIVER sum" and text !~ zebra'),
    Query(where="prompt_id = 00000000000000000000000000000007"),
    Query(where="flag or note != none"),
    Query(text="River SUM", sort="-reward_mean"),
    Query(text="0000000000000000000000000000001"),
]


@contextmanager
def served(root: Path, run: str) -> Iterator[str]:
    """The URL that signs a browser in to `wind ui`, which ends as with ctrl-C."""
    command = [sys.executable, "-m", "flows.cli", "ui", run, "--root", str(root)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.send_signal(2)
        assert server.wait(30) == 0
        server.stdout.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run `big` of 70 prompts, whose model has a tokenizer."""
    root = tmp_path_factory.mktemp("samples") / "store"
    store = Store(root)
    make_run(store, 70)
    (root / "models" / ("a" * 64)).mkdir(parents=True)
    tokenizer = (ROOT / "models" / "base" / "tokenizer.json").read_bytes()
    (root / "models" / ("a" * 64) / "tokenizer.json").write_bytes(tokenizer)
    return store


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as opened:
        opened.watch()
        opened.look()
        yield opened


def ready(page: Browser, url: str) -> None:
    page.go("about:blank")
    page.go(url)
    page.wait(READY)


def state(page: Browser) -> dict[str, str]:
    """What the address says."""
    script = "Object.fromEntries(new URLSearchParams(location.hash.slice('#read?'.length)))"
    told: dict[str, str] = page.run(script)
    return told


def expected(store: Store, query: Query) -> list[str]:
    found = Reader(store).answer(find_version(store, "big@2"), query)
    ids: list[str] = found.rows["prompt_id"].to_list()
    return ids


def test_everything_works_on_the_served_page(
    store: Store, page: Browser, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    version = find_version(store, "big@2")
    ids = expected(store, Query())
    with served(store.root, "big") as url:
        base = url.split("/?")[0]
        page.go(url)
        assert page.run("location.href") == f"{base}/runs/big"
        samples_url = f"{base}/runs/big/samples"
        ready(page, samples_url)
        assert page.run(IDS) == ids
        assert page.run("document.querySelector('.count').textContent") == "70 prompts"

        # keys: prompts, samples, iterations
        page.press("j")
        page.wait(f"location.hash.includes('{ids[1]}')")
        page.press("k")
        page.wait(f"location.hash.includes('{ids[0]}')")
        page.press("n")
        page.wait("document.querySelectorAll('.over li').length === 2")
        page.press("I")
        page.wait("location.hash.includes('big%401') && document.querySelector('.is-here')")
        page.press("i")
        page.wait("document.querySelectorAll('.over li').length === 2")
        page.press("t")
        page.wait("document.querySelector('.tokens')")
        assert state(page) == {"version": "big@2", "prompt": ids[0], "sample": "0", "tokens": "yes"}
        steps = Reader(store).over_iterations(version, ids[0], 0)
        shown = "[...document.querySelectorAll('.over li del')].map(each => each.textContent)"
        assert page.run(shown) == [
            part.text for step in steps for part in step.difference if part.sign == "-"
        ]

        # the address is the view
        link = page.run("location.href")
        ready(page, link)
        page.wait("document.querySelector('.tokens') && document.querySelector('.over li')")

        # filters
        page.press("/")
        page.type("River SUM")
        page.wait("location.hash.includes('text=River')")
        wanted = expected(store, Query(text="River SUM"))
        page.wait(
            f"JSON.stringify({IDS}) === {json.dumps(json.dumps(wanted, separators=(',', ':')))}"
        )
        page.press("Escape")
        page.run("document.querySelector('[data-where]').focus()")
        page.type("reward_gain > ")
        page.wait("document.querySelector('[data-complaint]').textContent")
        complaint = page.run("document.querySelector('[data-complaint]').textContent")
        assert complaint == "the filter at its end: expected a number after reward_gain >"
        page.complaints = [each for each in page.complaints if " 400" not in each]

        # notes
        ready(page, f"{samples_url}#read?version=big%402&prompt={ids[3]}")
        page.press("f")
        page.wait("document.querySelector('[data-saved]').textContent === 'saved'")
        page.run("document.querySelector('textarea').focus()")
        page.type("odd </textarea> 😀")
        page.wait("document.querySelector('[data-saved]').textContent === 'saved'")
        page.wait("document.querySelector('[aria-current] .flagged')")
        deadline = time.monotonic() + 10
        while "odd" not in Reader(store).notes("big").all()[ids[3]].note:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ready(page, f"{samples_url}#read?where=flag")
        assert page.run(IDS) == [ids[3]]
        page.press("?")
        page.wait("document.querySelector('dialog').open")
        assert page.violations() == []
        page.press("Escape")
        page.go("about:blank")
    code, out, _ = command("notes", "big", "--jsonl", "--root", str(store.root))
    (note,) = map(json.loads, out.splitlines())
    assert (code, note["prompt_id"], note["flag"]) == (0, ids[3], True)
    assert (note["note"], note["version"]) == ("odd </textarea> 😀", "big@2")
    assert note["prompt"] in Reader(store).frame(version)["text"].to_list()
    Reader(store).notes("big").write(
        Reader(store).notes("big").all()[ids[3]].model_copy(update={"note": "", "flag": False})
    )
    assert page.complaints == []


def test_a_folder_chooses_the_same_prompts_without_a_server(
    store: Store, page: Browser, tmp_path: Path
) -> None:
    versions = list(Versions(store, "big"))
    written = samples.write_samples(store, versions, tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".js", ".html"}
    ready(page, written.as_uri())
    for query in QUERIES:
        told = urlencode({"version": "big@2"}) + f"&{query.url()}"
        ready(page, f"{written.as_uri()}#read?{told}")
        assert page.run(IDS) == expected(store, query), query
    for wrong in ("(", "colour = 1", "text > 1", "1 = 1", 'flag "x"'):
        ready(page, f"{written.as_uri()}#read?{urlencode({'where': wrong})}")
        with pytest.raises(ValueError, match=re.escape("the filter")) as refused:
            Query.of({"where": wrong})
        shown = page.run("document.querySelector('[data-complaint]').textContent")
        assert shown.partition(": ")[2] == str(refused.value).partition(": ")[2]
    ready(page, f"{written.as_uri()}#read?version=big%402&prompt={expected(store, Query())[0]}")
    page.press("n")
    page.wait("document.querySelectorAll('.over li').length === 2")
    page.press("t")
    page.wait("document.querySelector('.tokens')")
    page.press("f")
    page.wait("document.querySelector('[data-saved]').textContent === 'saved'")
    assert page.run("JSON.parse(localStorage['wind-notes:big'])")
    for width, theme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        page.look(width=width, height=844, theme=theme)
        assert page.violations() == [], (width, theme)
        page.run("document.querySelector('.back button')?.click()")
        assert page.violations() == [], (width, theme)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.look()
    assert page.complaints == []


def test_hostile_texts_are_harmless_and_a_long_line_is_quick(page: Browser, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_versions(store, tmp_path / "outside", text=HOSTILE + LINE)
    with served(tmp_path / "store", "demo") as url:
        page.go(url)
        base = url.split("/?")[0]
        began = time.monotonic()
        ready(page, f"{base}/runs/demo/samples#read?prompt={PROMPTS[0]}&sample=0&raw=yes")
        page.wait("document.querySelectorAll('.over li').length === 2")
        _is_harmless(page)
        assert time.monotonic() - began < 30
        page.run("document.querySelector('.response .more').click()")
        assert page.violations() == []
        page.go("about:blank")
    embedded = samples.embedded_samples(store, list(Versions(store, "demo")))
    assert embedded is not None
    one = tmp_path / "one.html"
    one.write_bytes(glance(store, find_version(store, "demo"), samples=embedded))
    ready(page, f"{one.as_uri()}#read?prompt={PROMPTS[0]}&sample=0")
    _is_harmless(page)
    assert page.complaints == []


def _is_harmless(page: Browser) -> None:
    assert page.run("window.pwned") is None
    text = page.run("document.querySelector('.response .text').textContent")
    for part in (r"\x1b[31m\u202egpj.exe\u2066\x00\x7f", "<script>window.pwned", "{{ 7 * 7 }}"):
        assert part in text
    assert len(text) < 10_000
    assert page.run("document.querySelectorAll('.reader img').length") == 0
