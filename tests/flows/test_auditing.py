"""What explains a version, on a real run: the plan says beforehand what the difference says
afterwards.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.distill import distill
from flows.plan import planned
from tasks.run import open_run
from wind.audit.diff import difference
from wind.config.recipe import DistillConfig
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Recipe = Callable[..., DistillConfig]
Wind = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("warm_workers")
def test_a_plan_and_the_difference_agree(finished_recipe: Recipe, tmp_path: Path) -> None:
    finished_recipe()
    config = finished_recipe("training.lr=3e-3")
    steps = {step["dataset"]: step["why"] for step in planned(config) if step["outcome"] == "run"}
    assert steps["training"] == ["training.lr 0.001 -> 0.003"]
    assert steps["eval_generations"] == ["input policy changed"]
    assert "reference_generations" not in steps
    with open_run(config, quiet=True) as here:
        distill(here.config)
    store = Store(tmp_path / "store")
    before, after = Versions(store, "tiny")
    found = difference(store, before, after)
    assert {each.dataset: each.why for each in found.recomputed} == steps
    assert {each.name for each in found.datasets if not each.same} <= set(steps)
    assert set(after.computations) == {
        *after.content.datasets,
        "reference_generations",
        "reference_rewards",
    }
    unchanged = {name: key for name, key in before.computations.items() if name not in steps}
    # hits, by the cache's record
    assert {name: after.computations[name] for name in unchanged} == unchanged

    # A cache record of before there were keys, and a dataset that is gone.
    for record in (tmp_path / "store" / "results").iterdir():
        content = json.loads(record.read_bytes())
        if isinstance(content.get("result"), str):
            result = json.loads(content["result"])
            result.pop("computation", None)
            record.write_text(json.dumps(content | {"result": json.dumps(result)}))
    rewards = after.content.datasets["rewards"]
    store.storage.delete(f"datasets/rewards/{rewards.fingerprint}")
    steps = {step["dataset"]: step["why"] for step in planned(config) if step["outcome"] == "run"}
    assert steps["rewards"] == ["its dataset, or what was made with it, is missing or damaged"]
    assert steps["win_rates"] == ["input rewards changed"]
    of_second = [
        step for step in planned(finished_recipe("iterations=2")) if step["iteration"] == 2
    ]
    assert of_second[0]["why"] == ["never computed"]


def test_the_commands_explain_a_run(finished_recipe: Recipe, wind: Wind, tmp_path: Path) -> None:
    finished_recipe()
    version = find_version(Store(tmp_path / "store"), "tiny")
    model, training = (
        version.content.model_out.fingerprint,
        version.content.datasets["training"].fingerprint,
    )

    code, out, _ = wind("lineage", "tiny", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["root"] == f"version/{version.id}"
    made = [edge["child"] for edge in found["edges"] if edge["parent"] == f"training/{training}"]
    assert f"models/{model}" in made
    (source,) = (node for node in found["nodes"].values() if node["kind"] == "source")
    assert source["files"][0]["name"] == "prompts.jsonl"
    for name in ("tiny:model_out", f"models/{model[:10]}"):
        code, out, _ = wind("lineage", name)
        assert code == 0
        assert out.startswith(f"models  {model[:12]}")
        assert "prompts.jsonl" in out
    code, out, _ = wind("lineage", "tiny@1:rewards", "--format", "mermaid")
    assert out.startswith("flowchart TD\n")

    prompts = Store(tmp_path / "store").frame(version.content.datasets["prompts"])
    for split, samples in (("train", 4), ("eval", 2)):
        prompt = prompts.filter(split=split).row(0, named=True)
        code, out, _ = wind("prompt", prompt["prompt_id"][:12], "--json")
        history = json.loads(out)
        assert (history["prompt"], history["split"]) == (prompt["prompt"], split)
        (answers,) = history["iterations"]
        assert len(answers["rows"]) == samples
        assert {"response", "reward", "win_rate", "logp_policy", "logp_reference"} <= set(
            answers["rows"][0]
        )
        code, out, _ = wind("prompt", prompt["prompt_id"])
        assert out.count("logp") == samples
        code, out, _ = wind("lineage", prompt["prompt_id"])
        assert "prompts.jsonl line" in out

    code, out, _ = wind("diff", "tiny", version.id[:8], "--json")
    same = json.loads(out)
    assert (same["config"], same["recomputed"]) == ([], [])
    assert all(dataset["same"] for dataset in same["datasets"])
    code, out, _ = wind("diff", "tiny", "tiny")
    assert "the same: config, code, package" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("lineage", "nobody"),
        ("lineage", "abcdef"),
        ("lineage", "rewards/zz"),
        ("prompt", "zz"),
        ("prompt", "00", "--run", "nobody"),
        ("diff", "tiny", "nobody"),
        ("lineage", "tiny", "--format", "pdf"),
    ],
)
def test_a_name_of_nothing_is_one_line_and_2(wind: Wind, arguments: tuple[str, ...]) -> None:
    code, _, line = wind(*arguments)
    assert line.startswith("error: ")
    assert code == 2
