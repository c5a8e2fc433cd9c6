"""`wind sql` over a store made by hand: the numbers are those of tests/wind/reading_case.py."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.wind.reading_case import make_versions
from wind.errors import WindError
from wind.exchange.sql import TOO_LARGE, answer
from wind.store.datasets import Store
from wind.store.versions import Version

Wind = Callable[..., tuple[int, str, str]]


def test_nothing_but_the_answer_is_printed_however_long_it_takes() -> None:
    """DuckDB draws a progress bar in the output of a Python that no file was given to."""
    program = "from wind.exchange.sql import _connection\nwith _connection() as connection:\n    "
    program += "print(connection.sql(\"SELECT current_setting('enable_progress_bar')\").fetchall())"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[(False,)]\n"


def test_every_dataset_is_a_view_over_all_versions(versions: list[Version], command: Wind) -> None:
    code, out, _ = command(
        "sql",
        "SELECT iteration, version, avg(reward) AS mean FROM rewards GROUP BY ALL ORDER BY ALL",
        "--json",
    )
    assert code == 0
    assert json.loads(out) == [  # (1 + 3 + 2 + 0) / 4 and (2 + 4 + 3 + 5) / 4
        {"iteration": 1, "version": "demo@1", "mean": 1.5},
        {"iteration": 2, "version": "demo@2", "mean": 3.5},
    ]
    query = (
        "SELECT g.response FROM generations g JOIN win_rates w USING (prompt_id, sample_index, "
        "version) "
        "WHERE w.rank = 1 AND g.iteration = 2 ORDER BY 1"
    )
    _, out, _ = command("sql", query, "--json", "--run", "demo")
    assert [row["response"] for row in json.loads(out)] == ["a21", "b21"]
    _, out, _ = command(
        "sql",
        "SELECT count(*) AS n, count(DISTINCT version) AS versions FROM eval_generations",
        "demo@1",
        "--json",
    )
    assert json.loads(out) == [{"n": 2, "versions": 1}]
    _, out, _ = command(
        "sql",
        "SELECT v.previous, m.value FROM versions v JOIN metrics m USING (version) ORDER BY number",
        "--json",
    )
    assert json.loads(out) == [
        {"previous": None, "value": 0.5},
        {"previous": versions[0].id, "value": 1.0},
    ]
    _, out, _ = command(
        "sql", "SELECT 'nan'::DOUBLE AS x, DATE '2020-02-02' AS day WHERE true", "--json"
    )
    assert json.loads(out) == [{"x": None, "day": "2020-02-02"}]
    _, out, _ = command("sql", "SELECT * FROM rewards WHERE false", "--json")
    assert json.loads(out) == []
    _, out, _ = command("sql", "SELECT max(reward) AS best FROM rewards")
    assert "5.0" in out


def test_answers_go_to_files(versions: list[Version], command: Wind, tmp_path: Path) -> None:
    query = "SELECT reward, iteration FROM rewards ORDER BY ALL"
    _, out, _ = command("sql", query, "--csv", "rewards.csv")
    assert json.loads(out) == {"rows": 8}
    _, out, _ = command("sql", query, "--parquet", "rewards.parquet")
    expected = [0.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0]
    assert (
        pl.read_csv("rewards.csv")["reward"].to_list()
        == pl.read_parquet("rewards.parquet")["reward"].to_list()
        == expected
    )
    code, _, err = command(
        "sql", "SELECT response_token_ids FROM generations", "--csv", "lists.csv"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert sorted(path.name for path in Path().glob("*.csv")) == ["rewards.csv"]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT rewarded FROM rewards", 'Candidate bindings: "reward"'),
        (
            "SELECT * FROM breakfast",
            "There are prompts, generations, rewards, win_rates, training, eval_generations, "
            "metrics, versions",
        ),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("COPY (SELECT 1) TO 'there.csv'", "disabled by configuration"),
        ("ATTACH 'there.db'", "disabled by configuration"),
        ("SET enable_external_access = true", "locked"),
        # a variable of this process is no table
        ("SELECT * FROM store", "Table with name store does not exist"),
        ("SELECT error('no such answer') FROM generations", "no such answer"),
        ("", "begin it with SELECT"),
    ],
)
def test_a_wrong_query_is_one_line(
    versions: list[Version], command: Wind, query: str, told: str
) -> None:
    code, _, err = command("sql", query, "--json")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err
    assert not Path("there.csv").exists()


LARGE = [
    "SELECT repeat('x', 3000000000)",
    "SELECT repeat('x', 1500000000) FROM rewards",
    "SELECT string_agg(repeat('x', 1000000), ',') FROM range(5000)",
    "SELECT repeat('x', 10000000) FROM range(500)",
    "SELECT range(1000000000)",
]


@pytest.mark.parametrize("query", LARGE)
def test_a_query_that_would_take_all_memory_is_one_line(
    versions: list[Version], command: Wind, query: str
) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    code, out, err = command("sql", query, "--json")
    assert (code, err) == (2, f"error: {TOO_LARGE}\n")
    assert out in ("", "[\n")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert sorted(path.name for path in Path().iterdir()) == ["store"]  # nor does it spill here


def test_what_does_not_fit_in_memory_is_on_disk_meanwhile(
    versions: list[Version], command: Wind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wind.exchange.sql.BUFFERS", "20MB")
    query = (
        "SELECT count(*) AS n FROM (SELECT DISTINCT i || repeat('.', 60) AS t FROM "
        "range(500000) r(i))"
    )
    code, out, _ = command("sql", query, "--json")
    assert (code, json.loads(out)) == (0, [{"n": 500_000}])
    assert sorted(path.name for path in Path().iterdir()) == ["store"]
    assert list(Path(tempfile.gettempdir()).glob("wind-sql-*")) == []


def test_a_table_of_more_than_anybody_reads_is_one_line(
    versions: list[Version], command: Wind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.query_output.MOST_SHOWN", 2**20)
    code, out, err = command("sql", "SELECT i FROM range(1000000) r(i)")
    assert (code, out) == (2, "")
    assert (
        err
        == "error: the answer has more than 1 MiB: write it with --csv or --parquet, or ask for "
        "less\n"
    )


CONDITIONS = [
    "1=1 --",
    "1=1 /* all */",
    "reward < 9 -- or so",
    "reward IN (SELECT reward FROM dataset)",
    "true",
    "'--' = '--'",
]
WRONG = [
    *(
        "1=1) --",
        "1=1) LIMIT 99 --",
        "1=1 /*",
        "1=1; SELECT 2",
        "1=1) OR (1=1",
        "1=1 LIMIT 99",
        "1=1 UNION SELECT 1",
        "1=1, 2=2",
    ),
    *(
        "1=1 ORDER BY reward",
        "1=1 FROM dataset",
        "*",
        "reward AS x",
        "SELECT 1",
        "1=1\n) --",
        "1=1 OFFSET 1",
    ),
    *(
        "EXISTS (SELECT * FROM read_text('store/runs/demo/versions/0001.json'))",
        "EXISTS (FROM 'prompts.csv')",
    ),
    *(
        "EXISTS (FROM glob('*'))",
        "EXISTS (FROM store)",
        "EXISTS (FROM found)",
        "getenv('HOME') <> ''",
        "repeat('x', 3000000000) <> ''",
    ),
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_cuts_off_no_limit(
    versions: list[Version], command: Wind, condition: str
) -> None:
    code, out, _ = command("rows", "demo@1:rewards", "--where", condition, "--limit", "2", "--json")
    assert (code, len(json.loads(out))) == (0, 2)


@pytest.mark.parametrize("condition", WRONG)
def test_a_condition_is_one_expression_over_the_dataset(
    versions: list[Version], command: Wind, condition: str
) -> None:
    Path("prompts.csv").write_text("a\n1\n")
    code, out, err = command("rows", "demo@1:rewards", "--where", condition, "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --where ")


def test_which_run_is_asked(
    store: Store, versions: list[Version], command: Wind, tmp_path: Path
) -> None:
    make_versions(store, tmp_path / "outside", run="other")
    for arguments in (
        (),
        ("--run", "nobody"),
        ("demo@1", "--run", "demo"),
        ("--json", "--csv", "x.csv", "demo"),
    ):
        code, _, err = command("sql", "SELECT 1", *arguments)
        assert code == 2
        assert err.count("\n") == 1


def test_datasets_that_are_not_asked_for_are_not_opened(
    store: Store, versions: list[Version]
) -> None:
    store.storage.delete("datasets/generations")
    with answer(store, versions, "SELECT count(*) AS n FROM rewards") as rows:
        assert rows.read_all().to_pylist() == [{"n": 8}]
    with pytest.raises(WindError), answer(store, versions, "SELECT count(*) FROM Generations"):
        pass
