"""Archives forged in one part after the other: an import refuses them, or a run goes by nothing
that was forged.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_checks.results import passed
from flows.distill import distill
from flows.plan import planned
from tasks.run import open_run
from tests.flows.conftest import Recipe, Wind
from tests.wind.test_archives import Members, forge, members_of, plain, position
from wind.exchange.archives import export_archive
from wind.store import sealed_json
from wind.store.datasets import Store
from wind.store.origins import not_computed_here
from wind.store.references import find_version
from wind.store.seals import seal_of
from wind.store.versions import Version, Versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def sent(finished_recipe: Recipe) -> Path:
    """The archive of the finished run, all of whose records have the stamp of whoever runs the
    tests.
    """
    export_archive(Store("store"), find_version(Store("store"), "tiny"), Path("sent.wind"))
    return Path("sent.wind")


def edited(members: Members, part: str, edit: Edit) -> dict[str, Any]:
    """Edit the record whose name begins with `part` and ends as JSON, with a digest that fits; its
    fields.
    """
    at = next(
        index
        for index, (info, _) in enumerate(members)
        if info.name.startswith(part) and info.name.endswith(".json")
    )
    fields: dict[str, Any] = json.loads(members[at][1])
    edit(fields)
    members[at] = (members[at][0], sealed_json.encode(fields))
    return fields


def to_be_computed(config: Any) -> list[str]:
    """The names of the datasets that a run would compute."""
    return [step["dataset"] for step in planned(config) if step["outcome"] == "run"]


def unchecked(store: Store, version: Version, config: Any) -> list[str]:
    """The names of the datasets of `version` without a passed check that counts."""
    return [
        name
        for name, each in version.content.datasets.items()
        if passed(store, each, config.checks) is None
    ]


@pytest.mark.parametrize(
    "name",
    [
        f"checkpoints/{'0' * 64}/step-00000001/complete.json",
        f"partial/rewards/{'0' * 64}/outputs-00000.json",
        f"results/{'0' * 64}",
        "runs/tiny/config.json",
        "runs/tiny/docs/index.html",
    ],
)
def test_what_a_run_would_go_on_with_is_in_no_archive(sent: Path, command: Wind, name: str) -> None:
    members = members_of(sent)
    forge(
        sent,
        [members[0], *sorted([*members[1:], (plain(name), b"{}")], key=lambda each: each[0].name)],
    )
    code, _, err = command("import", "sent.wind", "--root", "elsewhere")
    assert (code, err.count("\n")) == (1, 1)
    assert f"lists '{name}' of 2 bytes, which is not a file of a version" in err
    assert not Path("elsewhere").exists()


def other_rows(members: Members) -> None:
    """Other content under a fingerprint that the manifest, its digest and the version still name."""
    at = position(members, "datasets/rewards/")
    name = members[at][0].name.rpartition("/")[0]
    shard = position(members, f"{name}/part-00000.arrow")
    other = next(
        data
        for info, data in members
        if info.name.endswith("part-00001.arrow") and "datasets/rewards/" in info.name
    )
    members[shard] = (members[shard][0], other)


def other_spec(members: Members) -> None:
    edited(
        members,
        "datasets/rewards/",
        lambda fields: fields["computed_by"]["spec"].update(generations=None),
    )


def other_metrics(members: Members) -> None:
    edited(members, "runs/", lambda fields: fields["metrics"]["win_rate"].update(value=1.0))


def other_model(members: Members) -> None:
    edited(
        members,
        "runs/",
        lambda fields: fields["content"].update(model_out=fields["content"]["model_in"]),
    )


def moved_record(members: Members) -> None:
    """The record of a computation in the place of another's."""
    at = position(members, "computations/rewards/")
    other = next(
        data for info, data in members if info.name.startswith("computations/generations/")
    )
    members[at] = (members[at][0], other)


@pytest.mark.parametrize(
    "forgery", [other_rows, other_spec, other_metrics, other_model, moved_record]
)
def test_what_can_be_verified_is_refused(
    sent: Path, command: Wind, forgery: Callable[[Members], None]
) -> None:
    members = members_of(sent)
    forgery(members)
    forge(sent, members)
    code, _, err = command("import", "sent.wind", "--root", "elsewhere")
    assert (code, err.count("\n")) == (1, 1), err
    assert err.startswith("error: sent.wind: ")
    assert [path for path in Path("elsewhere").rglob("*") if path.is_file()] == []


def imported(command: Wind, members: Members) -> tuple[Store, Version]:
    """The store that takes in these members of an archive, and its version."""
    forge(Path("sent.wind"), members)
    code, _, err = command("import", "sent.wind", "--root", "elsewhere")
    assert code == 0, err
    store = Store("elsewhere")
    return store, find_version(store, "tiny")


def seconds(members: Members) -> None:
    edited(members, "runs/", lambda fields: fields["seconds"].update(training=0.0))


def vouched_spec(members: Members) -> None:
    """A manifest with another spec, and a version that was published with it."""
    folder = members[position(members, "datasets/win_rates/")][0].name.rpartition("/")[0]
    manifest = edited(
        members, folder, lambda fields: fields["computed_by"]["spec"].update(rewards=None)
    )
    edited(
        members,
        "runs/",
        lambda fields: fields["manifests"].update(
            {folder: seal_of(manifest).model_dump(mode="json")}
        ),
    )


def computation(members: Members) -> None:
    edited(members, "computations/win_rates/", lambda fields: fields["numbers"].update(seconds=0.0))


def unstamped_computation(members: Members) -> None:
    edited(members, "computations/win_rates/", lambda fields: fields.update(stamp=""))


def check(members: Members) -> None:
    edited(
        members,
        "checks/win_rates/",
        lambda fields: fields.update(expectations=fields["expectations"] + 1),
    )


@pytest.mark.parametrize(
    ("forgery", "computed_first", "checked_again", "is_ours"),
    [
        (lambda members: None, [], [], True),  # so that the others fail for their own reason
        (seconds, [], [], False),
        (vouched_spec, [], ["win_rates"], False),
        (computation, ["win_rates"], [], True),
        (unstamped_computation, ["win_rates"], [], True),
        (check, [], ["win_rates"], True),
    ],
)
def test_what_cannot_be_verified_is_not_believed(
    sent: Path,
    finished_recipe: Recipe,
    command: Wind,
    forgery: Callable[[Members], None],
    computed_first: list[str],
    checked_again: list[str],
    is_ours: bool,
) -> None:
    """One record was edited, and all others are ours and are taken: the one is what is computed, or
    checked, again.
    """
    members = members_of(sent)
    forgery(members)
    forge(sent, members)
    assert command("import", "sent.wind", "--root", "elsewhere")[0] == 0
    config, store = finished_recipe("root=elsewhere"), Store("elsewhere")
    version = find_version(store, "tiny")
    assert to_be_computed(config)[:1] == computed_first
    assert unchecked(store, version, config) == checked_again
    assert not_computed_here(store, version) == (
        None if is_ours else "imported from sent.wind, not computed here"
    )


@pytest.mark.usefixtures("own_workers")
def test_an_archive_of_somebody_else_saves_nothing(
    sent: Path,
    finished_recipe: Recipe,
    command: Wind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "key").write_text("0123456789abcdef" * 4)
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("WIND_KEY_FILE", str(tmp_path / "key"))
    assert command("import", "sent.wind", "--root", "elsewhere")[0] == 0
    config, store = finished_recipe("root=elsewhere"), Store("elsewhere")
    version = find_version(store, "tiny")
    names = list(version.content.datasets)
    assert set(to_be_computed(config)) == {*names, "reference_generations", "reference_rewards"}
    assert unchecked(store, version, config) == names
    with open_run(config, quiet=True) as here:
        distill(here.config)
        assert {event.outcome for event in here.events} == {"computed"}
    assert [each.id for each in Versions(store, "tiny")] == [version.id]
    assert (to_be_computed(config), unchecked(store, version, config)) == ([], [])
