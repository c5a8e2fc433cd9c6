"""The blocks of README.md and docs/, run in order, each page in a folder of its own.

The folder has the demo's recipe, models, and finished store, all made small; no test waits for the
whole demo. A command that does not exit with 0, and an output whose first line is not printed,
fail.
"""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import wind
from flows.distill import distill
from tasks.run import keep_config, open_run
from tasks.workers import Pool
from tests.flows.conftest import Wind, reached
from tests.pages import PAGES, ROOT, RUN, Block, blocks, commands, words
from wind.config.loading import load_config
from wind.files import lock

PAIRS = {"39+47", "17+25", "12+34", "48+27", "30+31", "23+45", "14+58"}
SMALL: dict[str, dict[str, Any]] = {
    "sampling": {"samples_per_prompt": 3},
    "training": {"epochs": 1, "batch_prompts": 4, "micro_prompts": 4},
    "evaluation": {"samples_per_prompt": 2, "bootstrap_samples": 100},
    "workers": {"processes": 1},
}
RUNNABLE = [
    page for page in PAGES if any(b.language in RUN and b.reason is None for b in blocks(page))
]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "own_workers")]


@pytest.fixture(scope="session")
def small_demo(prefect_variables: dict[str, str], pool: Pool, shared: Path) -> Path:
    """A folder like the checkout's after `make demo`; made once for all test processes."""
    folder = shared / "small_demo"
    folder.mkdir(exist_ok=True)
    with lock(folder / "lock"):
        if not (folder / "complete").exists():
            _write_small_demo(folder)
            config = load_config(Path(folder / "configs/demo.yaml"), [])
            with (
                reached(prefect_variables, shared / "prefect"),
                contextlib.chdir(folder),
                open_run(config, quiet=True, pool=pool) as here,
            ):
                keep_config(here.store, config)
                distill(here.config)
            (folder / "complete").touch()
    return folder


def _write_small_demo(folder: Path) -> None:
    (folder / "models").mkdir()
    for name in ("base", "reward"):
        shutil.copytree(ROOT / "models" / name, folder / "models" / name)
    rows = [
        {
            "prompt": f"{a}+{b}=",
            "answer": str(int(a) + int(b)),
            "pair": "+".join(sorted((a, b))),
        }
        for pair in sorted(PAIRS)
        for a, b in [pair.split("+"), reversed(pair.split("+"))]
    ]
    (folder / "models/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    for section, settings in SMALL.items():
        recipe[section] |= settings
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture
def here(small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    for name in ("configs", "models", "store"):
        shutil.copytree(small_demo / name, tmp_path / "page" / name)
    monkeypatch.chdir(tmp_path / "page")
    return tmp_path / "page"


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path, here: Path, command: Wind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.reason is not None or block.language not in RUN or block.file:
            continue
        if block.language == "python":
            _run_python(block, names)
        else:
            for line, shown in commands(block):
                _run(block, line, shown, command, monkeypatch.chdir)


def _run_python(block: Block, names: dict[str, object]) -> None:
    text = block.text
    if "<fingerprint>" in text:
        rewards = wind.open("store").version("demo").rewards
        text = text.replace("<fingerprint>", rewards.handle.fingerprint)
    exec(compile(text, block.place, "exec"), names)


def _run(block: Block, line: str, shown: str, command: Wind, go_to: Callable[[str], None]) -> None:
    program, *arguments = words(line)
    if program == "cd":
        go_to(arguments[0])
        return
    if program == "wind":
        code, out, complaints = command(*arguments)
    else:
        ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        code, out, complaints = ran.returncode, ran.stdout, ran.stderr
    assert code == 0, f"{block.place}: {line}: {complaints}"
    first = next((each for each in shown.split("\n") if each.strip() not in ("", "...")), "")
    masked = _masked(first.removesuffix("..."))
    assert any(_masked(each).startswith(masked) for each in (out + complaints).split("\n")), (
        f"{block.place}: {line} prints no line like {first!r}: {out}{complaints}"
    )


def _masked(line: str) -> str:
    """A line of output without what differs between two runs: digests, patches, and numbers."""
    line = re.sub(r"\b[0-9a-f]{8,}\b", "#", line).replace(", changed by the patch #", "")
    return " ".join(re.sub(r"\d[\d,.]*(?:e[-+]?\d+)?", "#", line).split())


def test_the_table_of_the_readme_has_the_columns_that_are_printed(
    here: Path, command: Wind
) -> None:
    shown = next(block for block in blocks(ROOT / "README.md") if block.language == "text")
    printed = command("versions")[1].split("\n")[0]
    assert shown.text.split("\n")[0].split() == printed.split()
