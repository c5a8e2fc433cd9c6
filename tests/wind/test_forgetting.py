"""Forgetting: which versions can go, and what goes with them."""

from typing import Any

import pytest

from tests.wind.versions_case import three_iterations, version
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.forgetting import forget
from wind.store.garbage import collect
from wind.store.handles import folder_of
from wind.store.references import find_version
from wind.store.versions import Version, Versions, everywhere


@pytest.fixture
def chain(store: Store) -> list[Version]:
    """Three iterations of a run."""
    return three_iterations(store)


def test_a_forgotten_version_frees_its_own_and_its_number_is_not_given_again(
    store: Store, chain: list[Version]
) -> None:
    versions = Versions(store, "demo")
    with pytest.raises(ConfigError, match="demo@3 continues demo@2"):
        forget(store, versions.run, [chain[1]])
    versions.tag("best", chain[2])
    with pytest.raises(ConfigError, match="demo@3 has the tag 'best'"):
        forget(store, versions.run, [chain[2]])
    forget(store, versions.run, [chain[2]], force=True)
    assert find_version(store, "demo").number == 2
    assert versions.tags() == {"latest": chain[1].id}
    rewards = store.manifest(chain[2].content.datasets["training"]).parents["rewards"]
    freed = {item.name for item in collect(store).items}
    assert freed == {
        folder_of(each)
        for each in (rewards, chain[2].content.datasets["training"], chain[2].content.model_out)
    }
    assert version(store, 3, chain[1], chain[1].content.model_out).number == 4
    forget(store, versions.run, list(versions))
    assert versions.tags() == {}
    assert len(collect(store).items) > 0
    assert [*store.handles("training"), *store.handles("models")] == []


def test_a_version_that_another_run_continues_is_not_forgotten(
    store: Store, chain: list[Version]
) -> None:
    branch = version(store, 3, chain[1], chain[1].content.model_out, run="branch")
    with pytest.raises(ConfigError, match="branch@1 continues demo@2"):
        forget(store, "demo", chain)
    forget(store, "branch", [branch])
    forget(store, "demo", chain)


def test_a_version_whose_twin_another_run_continues_can_be_forgotten(
    store: Store, chain: list[Version]
) -> None:
    """Two runs of one recipe have the same versions; each continues its own."""
    facts: dict[str, Any] = {"checks": {}, "metrics": {}, "seconds": {}}
    twins = [Versions(store, "twin").publish(each.content, **facts) for each in chain[:2]]
    assert [each.id for each in twins] == [each.id for each in chain[:2]]
    branch = version(store, 3, chain[1], chain[1].content.model_out, run="branch")
    assert branch.digest_before == chain[1].digest
    with pytest.raises(ConfigError, match="branch@1 continues demo@2"):
        forget(store, "demo", chain)
    forget(store, "twin", twins)
    assert [each.run for each in everywhere(store)] == ["branch", "demo", "demo", "demo"]
