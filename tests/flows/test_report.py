"""`wind report` and `wind figures`: what the pages say, and what they refuse."""

import json
import re
import shutil
import struct
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flows.pages import GENERATOR, render, visible
from flows.pages.comparison import compare_versions
from flows.pages.figures import figures
from flows.pages.glance import glance
from tests import browser
from tests.flows.conftest import Wind
from tests.flows.report_case import make_run
from wind.store.datasets import Store
from wind.store.versions import Version

HOSTILE = "<script>window.hit=1</script>\"'&{{7*7}}]]>\x1b[31m\u202egpj\u2066\u200b\n"


@dataclass(frozen=True)
class Made:
    """A run made by hand, and the pages of its two versions."""

    root: Path
    versions: list[Version]
    pages: list[bytes]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("reported")
    store = Store(folder / "store")
    versions = make_run(store, folder / "outside")
    return Made(folder / "store", versions, [glance(store, version) for version in versions])


@pytest.fixture
def versions(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Version]:
    """The run `demo` in the store of the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.root, "store")
    return made.versions


class Reader(HTMLParser):
    """The visible text of a page, and what its elements are."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


def read(page: bytes) -> tuple[str, Reader]:
    reader = Reader()
    reader.feed(page.decode())
    return " ".join(" ".join(reader.text).split()), reader


def test_the_first_sentences_say_what_happened(made: Made) -> None:
    text, _ = read(made.pages[1])
    # 0.9 and its interval above one half; 0.4 and its interval below; accuracy by the interval of the gain
    assert (
        "Iteration 2 wins 90.6% (80.0 to 97.0%) of comparisons with the initial policy by the "
        "training reward. By held_out it wins only 40.0% (31.0 to 48.0%). "
        "Gold accuracy is 75.0%, up from the initial policy's 25.0%. "
        "The data checks passed, with 1 warning."
    ) in text
    first, _ = read(made.pages[0])
    assert "Iteration 1 is on a par, winning 53.1% (40.0 to 66.0%) of comparisons with" in first
    assert "Gold accuracy is 25.0%, no measurable change from the initial policy's 25.0%." in first
    # 5 datasets of 4 expectations
    assert "All 20 expectations of the data checks were met." in first


def test_numbers_come_with_their_intervals_and_their_change(made: Made) -> None:
    text, reader = read(made.pages[1])
    assert "90.6% 95% interval 80.0 to 97.0% ↗ +37.5 points since iteration 1 , better" in text
    assert "40.0% 95% interval 31.0 to 48.0% ↘ −15.0 points since iteration 1 , worse" in text
    # of KL no direction is better
    assert "0.500 95% interval 0.400 to 0.600 ↗ +0.300 since iteration 1 " in text
    assert "win_rate moved by 0.4" in text
    assert "1 of 4 warned" in text
    assert made.versions[1].id in str(reader.attributes)
    # the win rate of the training reward has two names, and one line
    assert text.count("Win rate against the initial policy, by the training reward") == 1


def test_what_is_absent_is_not_shown(made: Made) -> None:
    first, _ = read(made.pages[0])
    assert "What changed since" not in first
    assert "Benchmark gsm8k" in first
    bare = made.versions[0].model_copy(update={"metrics": {}})
    empty, reader = read(glance(Store(made.root), bare))
    assert "Benchmark" not in empty
    assert "Did it get better?" not in empty
    # no heading, and no list without an item
    assert 'class="tiles"' not in str(reader.attributes)


def test_chosen_settings_are_marked(made: Made) -> None:
    page = made.pages[1].decode()
    shown = re.findall(r'<span( class="chosen")?>(.*?)\n</span>', page)
    assert [(bool(chosen), line) for chosen, line in shown if "lr" in line or "epochs" in line] == [
        (True, "●   lr: 0.1"),
        (False, "    epochs: 1"),
    ]


def test_the_same_version_gives_the_same_bytes(made: Made) -> None:
    assert glance(Store(made.root), made.versions[1]) == made.pages[1]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    version = make_run(store, tmp_path / "outside", text=HOSTILE)[-1]
    page = glance(store, version)
    text, reader = read(page)
    assert "<script>window.hit=1</script>" in text
    assert "{{7*7}}" in text
    assert r"\x1b[31m\u202egpj" in text
    assert page.count(b"window.hit=1</script>") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page.decode())
    # in the markup and in what is copied
    assert reader.tags.count("script") == 1


def test_a_metric_of_another_store_names_no_file_and_no_element(made: Made) -> None:
    name = '../../evil"><script>window.hit=1</script>'
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    version = made.versions[0].model_copy(update={"metrics": {name: entry}})
    drawn = [chart for each in figures(Store(made.root), [version]).values() for chart in each]
    (chart,) = (each for each in drawn if name in each.description + each.title)
    assert re.fullmatch("[A-Za-z0-9_-]+", chart.name)
    assert "<script>" not in chart.inline()
    ElementTree.fromstring(chart.svg())


@pytest.mark.parametrize("hacked", [True, False])
def test_alarms_stand_above_everything(tmp_path: Path, hacked: bool) -> None:
    store = Store(tmp_path / "store")
    text, _ = read(glance(store, make_run(store, tmp_path / "outside", hacked=hacked)[-1]))
    told = "ALARM: 1 of 2 tests of reward hacking found something."
    calm = "None of 2 tests of reward hacking raised an alarm."
    assert (told in text, calm in text) == (hacked, not hacked)
    first = "Alarm: reward_hacking.gold.initial. The reward rose alone."
    assert (first in text) == hacked
    assert not hacked or text.index(first) < text.index("Iteration 2 wins")
    assert ("Alarms of earlier iterations" in text) == hacked


def test_halves_of_characters_become_escapes() -> None:
    assert visible("a\ud800b\tc\nd\u200d\r") == "a\\ud800b\tc\nd\u200d\\r"
    assert b"\\ud800" in render("base.html.j2", title="\ud800")


def test_nothing_is_fetched_and_nothing_runs_but_our_own(made: Made) -> None:
    page = made.pages[1].decode()
    _, reader = read(page.encode())
    policy = next(value for name, value in reader.attributes if name == "content" and value)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    addresses = [value for name, value in reader.attributes if name in ("src", "href", "action")]
    assert all(value and value.startswith(("#", "data:")) for value in addresses)
    # a style attribute would need 'unsafe-inline'
    assert not [value for name, value in reader.attributes if name == "style"]


def test_ids_are_unique(made: Made) -> None:
    _, reader = read(made.pages[1])
    ids = [value for name, value in reader.attributes if name == "id"]
    assert sorted(ids, key=str) == sorted(set(ids), key=str)


@pytest.mark.slow
def test_report_writes_a_file_and_refuses_to_replace_another(
    command: Wind, versions: list[Version]
) -> None:
    assert command("report", "demo", "--out", "page.html")[:2] == (0, "page.html\n")
    assert GENERATOR.encode() in Path("page.html").read_bytes()[:4096]
    assert command("report", "demo", "--out", "page.html")[0] == 0  # a report may be replaced
    Path("thesis.html").write_text("<p>years of work")
    code, out, err = command("report", "demo", "--out", "thesis.html")
    assert (code, out) == (2, "")
    assert err == (
        "error: --out thesis.html is there and is no report: give --force to replace it\n"
    )
    assert Path("thesis.html").read_text() == "<p>years of work"
    assert command("report", "demo", "--out", "thesis.html", "--force")[0] == 0
    assert command("report", "demo")[:2] == (0, "store/runs/demo/report.html\n")
    assert versions[-1].id.encode() in Path("store/runs/demo/report.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nosuch"], "no version is called 'nosuch' in store (runs: demo)"),
        (["demo", "--out", "."], "--out . is a folder: give a file, or --bundle for a folder"),
        (["demo", "--out", "a", "--bundle", "b"], "give either --out, for a file, or --bundle"),
        (["demo", "--bundle", "full"], "--bundle full is not empty and holds no report"),
    ],
)
@pytest.mark.usefixtures("versions")
def test_what_cannot_be_written_is_one_line(
    command: Wind, arguments: list[str], complaint: str
) -> None:
    Path("full").mkdir()
    (Path("full") / "thesis.txt").write_text("years of work")
    code, out, err = command("report", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {complaint}")
    assert err.count("\n") == 1
    assert [path.name for path in Path("full").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.usefixtures("versions")
def test_a_bundle_holds_every_page_it_links_to(command: Wind) -> None:
    code, out, _ = command("report", "demo", "--bundle", "bundle", "--json")
    assert code == 0
    assert json.loads(out)["page"] == "bundle/index.html"
    for page in ("index.html", "samples.html"):
        _, reader = read((Path("bundle") / page).read_bytes())
        links = [value for name, value in reader.attributes if name == "href" and value]
        assert all(
            (Path("bundle") / link).exists() for link in links if link[:1] not in "#d" and link
        )
    assert command("report", "demo", "--bundle", "bundle")[0] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("versions")
def test_figures_are_svg_and_png_of_the_same_numbers(command: Wind) -> None:
    code, out, _ = command("figures", "demo", "--out", "figures")
    assert code == 0
    assert "figures/frontier.svg  Win rate against KL\n" in out
    names = {path.stem for path in Path("figures").glob("*.svg")}
    assert names == {path.stem for path in Path("figures").glob("*.png")}
    assert {"win_rate-initial", "accuracy", "benchmark-gsm8k", "rewards", "lengths"} <= names
    for path in Path("figures").glob("*.svg"):
        ElementTree.parse(path)
    drawn = (Path("figures") / "accuracy.png").read_bytes()
    width, height = struct.unpack(">II", drawn[16:24])
    assert width > 600
    assert height > 300
    before = {path.name: path.read_bytes() for path in Path("figures").iterdir()}
    assert command("figures", "demo", "--out", "figures")[0] == 0
    assert before == {path.name: path.read_bytes() for path in Path("figures").iterdir()}


@pytest.mark.slow
def test_two_versions_are_compared_on_the_prompts_they_share(
    command: Wind, versions: list[Version], tmp_path: Path
) -> None:
    make_run(Store("store"), tmp_path / "other", run="other", lr=0.2)
    assert command("report", "demo@1", "other", "--out", "page.html")[0] == 0
    text, _ = read(Path("page.html").read_bytes())
    # the mean of WINS[2] minus that of WINS[1]: 7.25 / 8 - 4.25 / 8
    assert re.search(
        r"Win rate 53.1% 40.0 to 66.0% 90.6% 80.0 to 97.0% \+37.5 points ✓ , better", text
    )
    # 24 / 8 - 9 / 8, over four prompts
    assert re.search(r"\+1.875.{0,60} 4 ", text) or "+1.875" not in text
    assert "training.lr 0.1 0.2" in text
    assert "other@2 is better than demo@1 in win rate (+37.5 points)" in text
    # the prompt d moved most: from a mean of 2 to one of 6
    assert text.index("say d") < text.index("say a")
    assert "mean reward 2.000" in text
    assert "mean reward 6.000" in text
    assert "demo 1 6" in text  # its first sample moved by five


@pytest.mark.slow
@pytest.mark.skipif(browser.program() is None, reason="needs a Chromium")
def test_pages_work_in_a_browser_for_everyone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    endless = HOSTILE + "x" * 2**20 + "\u202e"
    versions = make_run(store, tmp_path / "outside", text=endless)
    (tmp_path / "glance.html").write_bytes(glance(store, versions[-1]))
    (tmp_path / "compared.html").write_bytes(compare_versions(store, *versions))
    with browser.browser() as page:
        page.watch()
        looks = {"glance": [("light", 1280), ("dark", 390)], "compared": [("dark", 1280)]}
        for name, seen in looks.items():
            for theme, width in seen:
                page.look(width=width, theme=theme)
                page.go("about:blank")
                page.go((tmp_path / f"{name}.html").as_uri())
                page.wait("document.querySelector('[data-theme-toggle]').hidden === false")
                assert page.run("document.documentElement.scrollWidth <= innerWidth")
                assert page.run("window.hit") is None
                page.run(
                    "for (const each of document.querySelectorAll('details')) each.open = true"
                )
                assert page.violations() == []
        before = page.run("getComputedStyle(document.body).backgroundColor")
        page.run("document.querySelector('[data-theme-toggle]').click()")
        assert page.run("getComputedStyle(document.body).backgroundColor") != before
        assert page.run("document.querySelector('[data-said]').textContent") == "Light"
        assert page.complaints == []
