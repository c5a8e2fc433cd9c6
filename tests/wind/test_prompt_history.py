"""The history of a prompt in a small run made by hand."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.wind.audit_case import HELD_OUT, REWARDS, TRAIN, Run, key, publish
from wind.audit.prompt_history import find_prompt, history
from wind.errors import ConfigError
from wind.store.versions import Version, Versions


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """For tests that take nothing away."""
    return Run(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_responses_of_every_iteration_best_first(shared: Run) -> None:
    found = history(shared.store, shared.versions[1], TRAIN)
    assert (found.prompt, found.split, found.answer) == ("first", "train", None)
    assert [(each.iteration, each.version, each.policy) for each in found.iterations] == [
        (1, "tiny@1", shared.models[0].fingerprint),
        (2, "tiny@2", shared.models[1].fingerprint),
    ]
    for iteration, answers in enumerate(found.iterations, 1):
        best_first = sorted(range(4), key=lambda index: -REWARDS[iteration][index])
        assert [row["sample_index"] for row in answers.rows] == best_first
        assert [row["reward"] for row in answers.rows] == sorted(REWARDS[iteration], reverse=True)
        assert [row["rank"] for row in answers.rows] == [1, 2, 3, 4]
        assert answers.rows[0]["response"] == f"tiny {iteration} 3"
        assert answers.rows[0]["win_rate"] == 1.0


def test_a_held_out_prompt_was_answered_by_the_trained_model(shared: Run) -> None:
    found = history(shared.store, shared.versions[0], HELD_OUT)
    (answers,) = found.iterations
    assert answers.policy == shared.models[1].fingerprint
    assert [row["response"] for row in answers.rows] == ["held out 0", "held out 1"]


def test_on_policy_a_prompt_has_the_steps_it_was_sampled_for(shared: Run) -> None:
    columns = {
        "step": pa.array([2, 2, 2, 4, 4, 4], pa.int32()),
        "prompt_id": [TRAIN] * 6,
        "sample_index": pa.array([0, 1, 2] * 2, pa.int32()),
        "drawn_from": ["policy", "policy", "anchor"] * 2,
        "response": list("abcdef"),
        "response_token_ids": pa.array([[2]] * 6, pa.list_(pa.int32())),
        "finish_reason": ["stop"] * 6,
        "seed": list(range(6)),
        "reward": [1.0, 2.0, 3.0, 5.0, 4.0, 0.0],
        "win_rate": [0.0, 1.0, 0.5, 1.0, 0.0, 0.5],
        "rank": [2, 1, 1, 1, 2, 1],
        "logp_policy": [-1.0] * 6,
        "logp_reference": [-2.0] * 6,
    }
    rollouts, _ = publish(shared.store, "rollouts", columns)
    content = shared.versions[0].content.model_copy(
        update={"datasets": {"prompts": shared.prompts, "rollouts": rollouts}}
    )
    version: Version = Versions(shared.store, "fresh").publish(
        content, checks={}, metrics={}, seconds={}
    )
    (answers,) = history(shared.store, version, TRAIN).iterations
    assert "".join(row["response"] for row in answers.rows) == "bacdef"
    assert [row["step"] for row in answers.rows] == [2, 2, 2, 4, 4, 4]


def test_the_evaluation_s_side_of_the_policy(shared: Run) -> None:
    """What the evaluation says of the policy's response has the name that other datasets have for
    it.
    """
    theirs = shared.store.read(
        shared.versions[0].content.datasets["eval_generations"]
    ).to_pydict() | {"response": ["r0", "r1"]}
    reference, _ = publish(shared.store, "generations", theirs, code="reference")
    columns = {
        **key(HELD_OUT, 2),
        **{name: [1.0, 2.0] for name in ("reward_policy", "logp_policy", "accuracy_policy")},
        **{
            name: [0.0, 0.0]
            for name in ("reward_reference", "tie_share", "logp_reference", "accuracy_reference")
        },
        "win_rate": [1.0, 1.0],
        **{
            f"response_tokens_{side}": pa.array([1, 2], pa.int32())
            for side in ("policy", "reference")
        },
        **{f"is_truncated_{side}": [False, False] for side in ("policy", "reference")},
    }
    evaluation, _ = publish(
        shared.store, "evaluation", columns, {"generations_reference": reference}
    )
    content = shared.versions[0].content
    content = content.model_copy(update={"datasets": content.datasets | {"evaluation": evaluation}})
    version = Versions(shared.store, "judged").publish(content, checks={}, metrics={}, seconds={})
    (answers,) = history(shared.store, version, HELD_OUT).iterations
    first = answers.rows[0]
    assert {
        name: first[name]
        for name in (
            "response",
            "response_reference",
            "reward_policy",
            "response_tokens",
            "accuracy",
        )
    } == {
        "response": "held out 0",
        "response_reference": "r0",
        "reward_policy": 1.0,
        "response_tokens": 1,
        "accuracy": 1.0,
    }


def test_a_lost_dataset_is_told_and_the_rest_shown(run: Run) -> None:
    shutil.rmtree(run.store.path(run.versions[0].content.datasets["rewards"]))
    first, second = history(run.store, run.versions[1], TRAIN).iterations
    assert "reward" not in first.rows[0]
    assert first.rows[0]["rank"] == 1
    assert len(first.damage) == 1
    assert "is not in the store" in first.damage[0]
    assert second.damage == []


def test_a_prompt_is_found_by_digits_that_only_it_has(run: Run, tmp_path: Path) -> None:
    assert find_prompt(run.store, TRAIN[:6]) == ([run.versions[1]], TRAIN)
    other = Run(tmp_path, run="other", lr=0.2)
    versions, _ = find_prompt(run.store, TRAIN)
    assert [version.run for version in versions] == ["other", "tiny"]
    assert find_prompt(run.store, TRAIN, "other") == ([other.versions[1]], TRAIN)
    with pytest.raises(ConfigError, match="2 prompts have an id that begins"):
        find_prompt(run.store, "")
    with pytest.raises(ConfigError, match="no prompt of run tiny"):
        find_prompt(run.store, "0" * 32, "tiny")
    with pytest.raises(ConfigError, match="no run is called 'nobody'"):
        find_prompt(run.store, TRAIN, "nobody")
