"""Lineage of a small run made by hand: what its ancestors are is known."""

import shutil
from pathlib import Path

import pytest

from tests.wind.audit_case import HELD_OUT, TRAIN, Run, publish, wins
from tests.wind.versions_case import three_iterations, version
from wind.audit.lineage import Lineage, Node, chain, of_handle, of_prompt, of_version
from wind.audit.lineage.mermaid import flowchart
from wind.store.datasets import Store
from wind.store.forgetting import forget
from wind.store.imports import import_source


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """For tests that take nothing away."""
    return Run(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def edges(found: Lineage) -> set[tuple[str, str, str]]:
    """Parent, name and child, by nouns."""
    return {
        (
            found.nodes[edge.parent].name.partition("/")[0],
            edge.name,
            found.nodes[edge.child].name.partition("/")[0],
        )
        for edge in found.edges
    }


def test_a_chain_goes_on_in_the_run_that_it_was_branched_from(store: Store) -> None:
    made = three_iterations(store)
    branch = version(store, 3, made[1], made[1].content.model_out, run="branch")
    assert chain(store, branch) == [*made[:2], branch]
    forget(store, "demo", made[:1], force=True)
    assert chain(store, branch) == [made[1], branch]


def test_a_model_comes_from_everything_before_its_training(shared: Run) -> None:
    found = of_handle(shared.store, shared.models[2])
    assert edges(found) == {
        ("training", "model", "models"),
        ("models", "policy", "training"),
        ("win_rates", "win_rates", "training"),
        ("rewards", "rewards", "win_rates"),
        ("generations", "generations", "rewards"),
        ("models", "policy", "generations"),
        ("prompts", "prompts", "generations"),
        ("sources", "source", "prompts"),
        ("models", "tokenizer", "prompts"),
    }
    count = {
        kind: sum(node.kind == kind for node in found.nodes.values())
        for kind in ("dataset", "model", "source")
    }
    assert count == {"dataset": 9, "model": 3, "source": 1}  # prompts, and four of each iteration
    (source,) = (node for node in found.nodes.values() if node.kind == "source")
    assert source.files == [
        {
            "name": "prompts.jsonl",
            "bytes": 41,
            "sha256": shared.store.manifest(shared.source).files[0].sha256,
        }
    ]
    assert source.computed_by is None
    assert source.provenance == {"source": "prompts.jsonl"}
    root = found.nodes[found.root]
    assert root.computed_by is not None
    assert root.computed_by["stage"] == "training"


def test_a_version_has_its_datasets_and_models_and_the_rest_above(shared: Run) -> None:
    found = of_version(shared.store, shared.versions[1])
    names = [name for called, _ in found.parents(found.root) for name in called.split(", ")]
    assert names == [*shared.versions[1].content.datasets, "model_in", "model_out", "reference"]
    # the first evaluation made nothing of this
    assert sum(node.kind == "dataset" for node in found.nodes.values()) == 10
    assert chain(shared.store, shared.versions[1]) == shared.versions


def test_of_equal_content_the_version_s_own_computation_counts(run: Run) -> None:
    """Rewards of iteration 2 once came from other generations; a version that used those says so,
    another does not.
    """
    version = run.versions[1]
    rewards, prompts = version.content.datasets["rewards"], version.content.datasets["prompts"]
    columns = run.store.read(rewards).to_pydict()
    other, its_key = publish(run.store, "rewards", columns, {"generations": prompts})
    assert other == rewards
    changed = version.model_copy(
        update={"computations": {**version.computations, "rewards": its_key}}
    )

    def parents_of(found: Lineage) -> list[str]:
        return [
            node.name.partition("/")[0]
            for _, node in found.parents(f"rewards/{rewards.fingerprint}")
        ]

    assert parents_of(of_handle(run.store, rewards, version)) == ["generations"]
    assert parents_of(of_handle(run.store, rewards, changed)) == ["prompts"]
    older = version.model_copy(update={"computations": {}})
    assert of_version(run.store, older).nodes.keys() >= {
        f"rewards/{rewards.fingerprint}",
        f"sources/{run.source.fingerprint}",
    }
    (node,) = (
        node
        for node in of_version(run.store, version).nodes.values()
        if node.id == f"rewards/{rewards.fingerprint}"
    )
    assert node.computations == 2


def test_a_prompt_comes_from_a_line_of_its_source(run: Run) -> None:
    found = of_prompt(run.store, run.versions[1], HELD_OUT)
    assert found.nodes[found.root].prompt == {
        "prompt": "second",
        "split": "eval",
        "answer": None,
        "row": "prompts.jsonl line 2",
    }
    assert edges(found) == {
        ("prompts", "prompts", f"prompt {HELD_OUT[:12]}"),
        ("sources", "source", "prompts"),
        ("models", "tokenizer", "prompts"),
    }
    shutil.rmtree(run.store.path(run.source))
    found = of_prompt(run.store, run.versions[1], TRAIN)
    assert found.nodes[found.root].prompt == {
        "prompt": "first",
        "split": "train",
        "answer": None,
        "row": None,
    }


def test_what_is_missing_or_damaged_says_so(run: Run) -> None:
    datasets = run.versions[0].content.datasets
    shutil.rmtree(run.store.path(datasets["generations"]))
    shard = run.store.path(datasets["rewards"]) / "part-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    record = run.store.root / "computations" / "win_rates" / datasets["win_rates"].fingerprint
    next(record.iterdir()).write_bytes(b"{")
    shutil.rmtree(run.store.path(run.models[1]))
    found = of_handle(run.store, run.models[2], run.versions[1])
    damage = {node.id: node.damage for node in found.nodes.values() if node.damage}
    reasons = {
        "generations": "is not in the store",
        "rewards": "lacks a file",
        "win_rates": "cannot be read",
    }
    for name, reason in reasons.items():
        assert reason in str(damage[f"{name}/{datasets[name].fingerprint}"])
    assert "is not in the store" in str(damage[f"models/{run.models[1].fingerprint}"])
    # The training of the first iteration lost its model; its record, and that of the generations,
    # still lead to the source.
    assert f"sources/{run.source.fingerprint}" in found.nodes
    assert flowchart(found).count(":::missing") == len(damage) == 5


def test_a_flowchart_shows_every_node_and_every_line_once(shared: Run) -> None:
    found = of_version(shared.store, shared.versions[1])
    lines = {(parent.id, child) for child in found.nodes for _, parent in found.parents(child)}
    text = flowchart(found)
    assert text.startswith("flowchart TD\n")
    assert text.count(":::") == len(found.nodes)
    assert text.count("-->") == len(lines)
    assert text == flowchart(of_version(shared.store, shared.versions[1]))


def test_an_arrow_of_a_flowchart_leads_from_the_parent_to_the_child(run: Run) -> None:
    lines = flowchart(of_handle(run.store, run.models[1], run.versions[0])).splitlines()
    (model,) = (
        line.split("(")[0].strip()
        for line in lines
        if f">{run.models[1].fingerprint[:12]} " in line
    )
    (training,) = (line.split("[")[0].strip() for line in lines if '["training<br/>' in line)
    assert f'    {training} -->|"model"| {model}' in lines


def test_a_name_that_means_something_to_a_flowchart_is_only_a_name(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / 'a"<b>#.jsonl').write_text('{"prompt": "x"}\n')
    source = import_source(run.store, [tmp_path / 'a"<b>#.jsonl'])
    found = of_handle(run.store, source)
    assert "a#quot;#lt;b#gt;#35;.jsonl" in flowchart(found)


def test_a_training_that_changed_nothing_is_drawn(run: Run) -> None:
    """Its model is the one that it began with."""
    base = run.models[0]
    columns = {"step": [1], "metric": ["loss"], "value": [0.0]}
    publish(run.store, "training", columns, {"policy": base}, outputs={"model": base})
    found = of_handle(run.store, base)
    assert edges(found) == {("training", "model", "models"), ("models", "policy", "training")}
    assert found.nodes[found.root].provenance["origin"] == "models/base"
    assert flowchart(found).count("-->") == 2


def test_a_caption_counts_in_the_unit_of_its_kind() -> None:
    def caption(kind: str, name: str, **facts: object) -> tuple[str, str]:
        return Node.model_validate({"id": name, "kind": kind, "name": name, **facts}).caption()

    assert caption("version", "demo@2", count=2) == ("demo@2", "iteration 2")
    assert caption("prompt", "prompt ab", prompt={"row": "p.jsonl line 2"}) == (
        "prompt ab",
        "p.jsonl line 2",
    )
    assert caption("prompt", "prompt ab", prompt={"row": None}) == ("prompt ab", "")
    assert caption("dataset", "rewards/ab", count=1) == ("rewards", "ab  1 row")
    assert caption("dataset", "rewards/ab", count=3776) == ("rewards", "ab  3,776 rows")
    assert caption("model", "models/ab", count=12_345_678) == ("models", "ab  12 M weights")
    files = [{"name": f"{name}.jsonl"} for name in "pqr"]
    assert caption("source", "sources/ab", count=3, files=files) == (
        "sources",
        "ab  p.jsonl and 2 more",
    )


def test_the_case_is_what_it_says() -> None:
    columns = wins([0.0, 2.0, 2.0, 5.0])
    assert columns["win_rate"] == [0.0, 0.5, 0.5, 1.0]
    assert columns["rank"] == [4, 2, 3, 1]
