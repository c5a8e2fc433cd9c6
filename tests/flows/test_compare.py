"""Comparisons and sweeps on real components: what runs share is computed once, and a second call
computes nothing.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.compare import Study, study
from flows.grid import read_recipes
from tasks.run import open_run
from wind.store.datasets import Store
from wind.store.versions import runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "warm_workers")]

Wind = Callable[..., tuple[int, str, str]]


def compared(paths: list[Path]) -> Study:
    trials = read_recipes(paths, [], [])
    with open_run(trials[0][0].config.model_copy(update={"run": "compare"}), quiet=True):
        return study("compare", trials, [0, 1])


@pytest.mark.usefixtures("finished_recipe")
def test_a_comparison_shares_what_its_runs_have_in_common(wind: Wind, tmp_path: Path) -> None:
    text = (tmp_path / "tiny.yaml").read_text()
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    paths[0].write_text(text.replace("run: tiny", "run: one"))
    paths[1].write_text(text.replace("run: tiny", "run: two") + "objective: {name: dpo}\n")
    first = compared(paths)
    assert [(run.cell.recipe, run.seed) for run in first.runs] == [
        ("one", 0),
        ("one", 1),
        ("two", 0),
        ("two", 1),
    ]
    of_one, of_both = (
        Counter(
            event.task
            for run in first.runs
            for event in run.events
            if run.seed == seed and event.outcome == "computed"
        )
        for seed in (0, 1)
    )
    assert of_both == {
        "load_prompts": 1,
        # of the first iteration, of the initial policy's evaluation, of each trained policy's
        "sample_generations": 4,
        "score_rewards": 4,
        "estimate_win_rates": 1,
        "select_rows": 2,  # each objective's own
        "score_logps": 4,
        "train_policy": 2,
        "evaluate_policy": 3,
        "measure_metrics": 3,
    }
    # With the first seed one of the two was run before, under another name; left are the other, and
    # the policy against itself.
    assert of_one == {
        "sample_generations": 1,
        "score_rewards": 1,
        "select_rows": 1,
        "score_logps": 2,
        "train_policy": 1,
        "evaluate_policy": 2,
        "measure_metrics": 2,
    }
    store = Store(tmp_path / "store")
    assert set(runs(store)) == {"tiny", "one-s0", "one-s1", "two-s0", "two-s1"}
    rows = store.frame(first.comparison)
    assert rows.filter(metric="win_rate", iteration=0)["value"].to_list() == [0.5] * 4
    assert rows.filter(metric="kl_k1", iteration=0)["value"].to_list() == [0.0] * 4
    assert len(set(rows.filter(metric="win_rate", iteration=1, seed=0)["value"])) == 2

    code, out, line = wind(
        "compare", "one.yaml", "two.yaml", "--seeds", "0,1", "--out", "out", "--json"
    )
    assert code == 0
    assert line.startswith("0 datasets computed, ")
    one, two = json.loads(out)
    assert (one["recipe"], two["recipe"], two["seeds"]) == ("one", "two", [0, 1])
    win_rates = rows.filter(metric="win_rate", iteration=1, recipe="two")["value"]
    assert two["curves"]["win_rate"][1]["value"] == pytest.approx(win_rates.mean())
    assert two["curves"]["seconds"][1]["value"] > 0
    assert {path.name for path in Path("out").iterdir()} == {
        *(
            "README.md",
            "index.html",
            "frontier.svg",
            "frontier.png",
            "learning.svg",
            "learning.png",
            "gold.svg",
            "gold.png",
        ),
    }
    page = Path("out/README.md").read_text()
    assert page.startswith("    wind compare one.yaml two.yaml --seeds 0,1 --out out --json\n")
    assert first.comparison.fingerprint[:12] in page
    assert f"| two | {two['curves']['win_rate'][1]['value']:.3f} [" in page
    by_itself = Path("out/index.html").read_text()
    assert f"{two['curves']['win_rate'][1]['value']:.3f} [" in by_itself
    assert "2 recipes compared" in by_itself

    code, out, _ = wind("verify", "--json")
    assert code == 0
    assert json.loads(out)["findings"] == []


@pytest.mark.usefixtures("finished_recipe")
def test_a_setting_is_chosen_on_the_first_seed_and_reported_on_the_others(
    wind: Wind, tmp_path: Path
) -> None:
    trying = ("--try", "training.lr=1e-3,1e-2", "--seeds", "0,1")
    code, out, _ = wind("compare", "tiny.yaml", *trying, "--json")
    assert code == 0
    (standing,) = json.loads(out)
    assert standing["seeds"] == [1]
    _, out, _ = wind("versions", "--json")
    on_first = {
        version["run"]: version["metrics"]["win_rate"]["value"]
        for version in json.loads(out)
        if version["run"].endswith("-s0")
    }
    assert len(on_first) == 2
    best = max(on_first, key=lambda run: on_first[run])
    assert best == f"tiny-{standing['setting'].replace('=', '_')}-s0"

    code, out, line = wind(
        "sweep",
        "tiny.yaml",
        "--over",
        "training.lr=1e-3,1e-2",
        "--seeds",
        "0",
        "--out",
        "out",
        "--json",
    )
    assert code == 0
    assert line.startswith("0 datasets computed, ")  # both were tried before
    assert [(cell["setting"], cell["seeds"]) for cell in json.loads(out)] == [
        ("lr=1e-3", [0]),
        ("lr=1e-2", [0]),
    ]
    assert Path("out/sweep.png").read_bytes()[:4] == b"\x89PNG"

    for arguments, says in (
        (
            ("compare", "tiny.yaml", "--try", "training.lr=1,2", "--seeds", "0"),
            "--try uses the first seed",
        ),
        (("compare", "tiny.yaml", "--seeds", "0,0"), "must be different whole numbers"),
        (("compare", "tiny.yaml", "--seeds", "0,x"), "must be different whole numbers"),
        (("sweep", "tiny.yaml", "--over", "training.lr"), "lists no values"),
        (
            ("sweep", "tiny.yaml", "--over", "training.lr=1,2", "--metrics", "beauty"),
            "--metrics has 'beauty'",
        ),
    ):
        code, _, line = wind(*arguments)
        assert line.startswith("error: ")
        assert says in line
        assert code == 2
