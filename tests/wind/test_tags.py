"""Tags: which names a version can be given, and when a tag moves."""

import pytest

from tests.wind.versions_case import listing, three_iterations
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Version, Versions


@pytest.fixture
def chain(store: Store) -> list[Version]:
    """Three iterations of a run."""
    return three_iterations(store)


def test_a_tag_is_moved_by_force_only(store: Store, chain: list[Version]) -> None:
    versions = Versions(store, "demo")
    versions.tag("best", chain[1])
    versions.tag("best", chain[1])
    assert find_version(store, "demo@best").number == 2
    with pytest.raises(ConfigError, match="demo@best points to demo@2: give --force"):
        versions.tag("best", chain[2])
    versions.tag("best", chain[2], force=True)
    assert find_version(store, "demo@best").number == 3
    versions.untag("best")
    with pytest.raises(ConfigError, match="demo has no tag 'best'"):
        versions.untag("best")


@pytest.mark.parametrize(
    "name", ["latest", "3", "0003", "", "../x", "a/b", ".x", "a b", "x" * 65, "a\n", "..", "ä"]
)
def test_what_cannot_be_a_tag(store: Store, chain: list[Version], name: str) -> None:
    before = listing(store)
    with pytest.raises(ConfigError, match="cannot be"):
        Versions(store, "demo").tag(name, chain[0], force=True)
    with pytest.raises(ConfigError, match="cannot be"):
        Versions(store, "demo").untag(name)
    assert listing(store) == before
