"""Records of computations: one for each, whatever content it made."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.wind.audit_case import Run, key, model, publish
from wind.errors import DatasetError
from wind.fingerprints import digest
from wind.stages import Job, Place, published, run
from wind.store import sealed_json
from wind.store.computations import Computation, computation_of, is_recorded, recorded
from wind.store.datasets import Store
from wind.store.handles import Dataset


@pytest.fixture(autouse=True)
def _other_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """These jobs were planned with codes that this checkout does not have."""
    monkeypatch.setattr("wind.stages.refuse_edited", lambda stage, planned: None)


def rewards_of(store: Store) -> Dataset:
    return publish(store, "rewards", {**key(digest("p")[:32], 3), "reward": [1.0, 2.0, 2.0]})[0]


def computed(
    store: Store, rewards: Dataset, code: str, modules: dict[str, str] | None = None
) -> Dataset:
    spec = {"rewards": rewards.model_dump(mode="json"), "win_rate": {}}
    job = Job(
        stage="win_rates",
        spec=spec,
        place=Place(root=str(store.root)),
        code=code,
        modules=modules or {},
    )
    return run(job, lambda done, total: None)


def test_equal_content_keeps_every_computation_that_made_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rewards = rewards_of(store)
    first, second = (
        computed(store, rewards, "old"),
        computed(store, rewards, "new", {"wind.win_rates": "new"}),
    )
    assert first == second
    assert store.manifest(first).computed_by["code"] == "old"
    assert [each.code for each in recorded(store, first)] == ["old", "new"]
    newer = recorded(store, first)[1]
    assert newer.parents == {"rewards": rewards}
    assert newer.modules == {"wind.win_rates": "new"}
    assert newer.numbers == store.manifest(first).numbers
    assert newer.provenance["seconds"] >= 0
    assert computation_of(store, first, newer.key()) == newer
    assert computation_of(store, first) == recorded(store, first)[0]


def test_a_record_stays_unless_it_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rewards = rewards_of(store)
    modules = {"wind.win_rates": "1"}
    made = computed(store, rewards, "old", modules)
    (path,) = (tmp_path / "computations" / "win_rates" / made.fingerprint).iterdir()
    content = path.read_bytes()
    for same in (modules, None):  # by hand, as `python -m wind.win_rates`, no module is known
        computed(store, rewards, "old", same)
        assert path.read_bytes() == content  # each has other times
    computed(store, rewards, "old", modules | {"tasks.win_rates.estimate_win_rates": "2"})
    assert b"estimate_win_rates" in path.read_bytes()

    path.write_bytes(content[:-2])
    with pytest.raises(DatasetError, match=f"{path.name} cannot be read"):
        recorded(store, made)
    computed(store, rewards, "old")
    assert [each.code for each in recorded(store, made)] == ["old"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("code", "forged", "was edited"), ("dataset", "other", "edited or moved")],
)
def test_an_edited_record_is_refused(tmp_path: Path, field: str, value: str, reason: str) -> None:
    store = Store(tmp_path)
    made = computed(store, rewards_of(store), "old")
    (path,) = (tmp_path / "computations" / "win_rates" / made.fingerprint).iterdir()
    fields = json.loads(path.read_bytes())
    fields[field] = (
        "forged" if field == "code" else {**fields[field], "fingerprint": digest("another")}
    )
    path.write_bytes(sealed_json.encode(fields))
    with pytest.raises(DatasetError, match=reason):
        recorded(store, made)


def test_a_model_knows_its_training_with_and_without_records(tmp_path: Path) -> None:
    run = Run(tmp_path)
    training = run.versions[0].content.datasets["training"]
    for _ in range(2):
        found = computation_of(run.store, run.models[1])
        assert found is not None
        assert (found.dataset, found.name_of(run.models[1])) == (training, "model")
        run.store.storage.delete("computations")  # as a store that is older than records
    assert computation_of(run.store, run.models[0]) is None  # it came from outside


def test_outputs_of_outputs_are_outputs(tmp_path: Path) -> None:
    """An on-policy training publishes its numbers as an output, whose outputs are the models."""
    store = Store(tmp_path / "store")
    trained = model(store, tmp_path / "model", 1.0)
    numbers, _ = publish(
        store,
        "training",
        {"step": [1], "metric": ["loss"], "value": [0.5]},
        outputs={"model": trained},
    )
    row = {
        "step": [1],
        **key(digest("p")[:32], 1),
        "drawn_from": ["policy"],
        "response": ["x"],
        "response_token_ids": [[2]],
    }
    row |= {"finish_reason": ["stop"], "seed": [0], "reward": [1.0], "win_rate": [0.5], "rank": [1]}
    row |= {"logp_policy": [-1.0], "logp_reference": [-1.0]}
    rollouts, its_key = publish(store, "rollouts", row, outputs={"training": numbers})
    found = computation_of(store, trained, its_key)
    assert found is not None
    assert found.dataset == rollouts
    assert found.outputs == {"training": numbers, "model": trained}


def test_what_has_lost_its_record_is_computed_and_recorded_again(tmp_path: Path) -> None:
    """Nobody else would write it again: a rerun must not take the dataset as it is."""
    store = Store(tmp_path)
    spec = {"rewards": rewards_of(store).model_dump(mode="json"), "win_rate": {}}
    job = Job(stage="win_rates", spec=spec, place=Place(root=str(tmp_path)), code="1")
    made = run(job, lambda done, total: None)
    assert published(job) == made
    (path,) = (tmp_path / "computations" / "win_rates" / made.fingerprint).iterdir()
    content = path.read_bytes()
    for damaged in (content.replace(b"win_rates", b"vin_rates", 1), None):
        path.write_bytes(damaged) if damaged else path.unlink()
        assert not is_recorded(store, made, job.key())
        assert published(job) is None
        assert run(job, lambda done, total: None, published) == made
        assert published(job) == made


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_no_record_can_hold_is_named_before_anything_is_published(
    store: Store, number: float
) -> None:
    with store.partial("rewards", "test") as partial:
        partial.write(0, pa.table({**key(digest("p")[:32], 3), "reward": [1.0, 2.0, 2.0]}))
        with pytest.raises(
            DatasetError,
            match=rf"numbers\.std_reward is {number}, which no record can hold: nothing was",
        ):
            partial.publish(
                1, parents={}, computed_by={}, numbers={"std_reward": number}, provenance={}
            )
    assert list(store.handles("rewards")) == []
    with pytest.raises(DatasetError, match=rf"b\[1\]\.c is {number}"):
        sealed_json.encode({"a": 1.0, "b": [0.5, {"c": number}]})


def test_a_record_that_its_reader_refuses_is_not_written() -> None:
    handle = Dataset(name="rewards", fingerprint="0" * 64, rows=1)
    numbers: Any = {"mean": "much"}
    wrong = Computation.model_construct(dataset=handle, stage="rewards", spec={}, numbers=numbers)
    with (
        pytest.raises(ValidationError),
        pytest.warns(UserWarning, match="serialized value may not be as expected"),
    ):
        sealed_json.encode(wrong)
