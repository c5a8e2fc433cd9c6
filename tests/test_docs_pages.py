"""README.md and docs/: every block is run or says why not, and every command, setting, file, and
link that a page names exists. tests/flows/test_docs_commands.py runs the blocks.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.commands.init import FILES, STARTER
from tests.pages import COMMAND, PAGES, READ, ROOT, RUN, SHOWN, Block, blocks, commands, words
from wind.config.recipe import DistillConfig

BLOCKS = [block for page in PAGES for block in blocks(page)]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md"]
PROSE = {page: re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S) for page in TEXTS}
PLACE = re.compile(
    r"`((?:flows|tasks|data_checks|wind|tests|docs|configs|benchmarks|requirements)/[\w./-]*)`"
)
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
written = pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))


@named
def test_every_block_is_run_or_marked(page: Path) -> None:
    assert re.findall(r"(?<=\n\n)    \S.*", PROSE[page]) == [], "indented blocks are in no test"
    for block in blocks(page):
        assert block.language in RUN | READ | SHOWN, block.place
        if block.language in SHOWN:
            assert not any(map(COMMAND.match, block.text.split("\n"))), block.place
    marks = re.findall(r"<!-- not run: .+ -->", page.read_text())
    assert len(marks) == sum(block.reason is not None for block in blocks(page)), "a mark is alone"


def wind_commands() -> list[tuple[str, list[str]]]:
    """Every `wind` command of the pages, also those within a line and of marked blocks."""
    found = []
    for block in BLOCKS:
        if block.language in ("bash", "console"):
            found += [(block.place, words(command)) for command, _ in commands(block)]
    for page, prose in PROSE.items():
        found += [
            (str(page.relative_to(ROOT)), words(code))
            for code in re.findall(r"`(wind [^`]+)`", prose)
        ]
    return [
        (place, given[1:])
        for place, given in found
        if given[:1] == ["wind"] and given[1:] != ["--help"]
    ]


def test_every_wind_command_exists_with_its_options() -> None:
    import typer.main

    from flows.cli import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("wind", [], resilient_parsing=True)
    for place, (name, *arguments) in wind_commands():
        command = group.get_command(context, name)
        assert command is not None, f"{place}: there is no command {name}"
        options = {option for parameter in command.params for option in parameter.opts}
        wrong = {each for each in arguments if each.startswith("--")} - options
        assert not wrong, f"{place}: wind {name} has no {wrong}"


def test_the_settings_of_every_command_are_fields_of_a_recipe() -> None:
    for place, arguments in wind_commands():
        for option, value in pairwise(arguments):
            if option in ("--set", "--over", "--try") and "=" in value and value[0].islower():
                assert _is_setting(value.partition("=")[0]), f"{place}: {value}"


def _is_setting(name: str) -> bool:
    schema = DistillConfig.model_json_schema()
    kinds = [schema]
    for part in name.split("."):
        kinds = [
            kind
            for each in kinds
            if part in each.get("properties", {})
            for kind in _kinds(each["properties"][part], schema)
        ]
    return bool(kinds)


def _kinds(field: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that a field may hold, or the field itself if it holds none."""
    references = re.findall(r"#/\$defs/(\w+)", json.dumps(field))
    return [schema["$defs"][name] for name in references] or [field]


def test_every_file_that_a_command_reads_exists() -> None:
    for place, arguments in wind_commands():
        for argument in arguments:
            for name in re.findall(r"^configs/[\w/-]+\.\w+$", argument):
                assert (ROOT / name).is_file(), f"{place}: {name}"


def sections() -> list[Any]:
    """The YAML of the pages, and each of it again with a line that is commented out in place."""
    found = []
    for block in BLOCKS:
        if block.language == "yaml" and block.file is None and block.reason is None:
            found.append(pytest.param(block, yaml.safe_load(block.text), id=block.place))
            for line in re.findall(r"^# (\w+: \{.*)$", block.text, flags=re.M):
                other = yaml.safe_load(block.text) | yaml.safe_load(line)
                found.append(pytest.param(block, other, id=f"{block.place}-{line[:30]}"))
    return found


@pytest.mark.parametrize(("block", "given"), sections())
def test_every_section_is_one_of_a_recipe(block: Block, given: dict[str, Any]) -> None:
    recipe = yaml.safe_load((STARTER / "mine.yaml").read_text())
    DistillConfig.model_validate({**recipe, **given})


def test_the_readme_shows_what_init_writes() -> None:
    shown = {block.file: block.text + "\n" for block in blocks(ROOT / "README.md") if block.file}
    assert shown == {name: (STARTER / name).read_text() for name in FILES}


@written
def test_every_file_that_is_named_exists(page: Path) -> None:
    assert [name for name in PLACE.findall(PROSE[page]) if not (ROOT / name).exists()] == []


@written
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)\)", PROSE[ROOT / "README.md"]))
    assert linked >= {str(page.relative_to(ROOT)) for page in PAGES[1:]}
