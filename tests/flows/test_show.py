"""What `wind versions` says of a version."""

import pytest

from flows.show import versions
from wind.store.datasets import Store
from wind.store.versions import Version

SECONDS = {
    "training": 1.5,
    "eval_generations": 20.0,
    "eval_rewards": 3.0,
    "eval_logps": 0.4,
    "evaluation": 0.1,
    "metrics": 50.0,
}


def test_an_evaluation_took_what_its_sampling_and_judging_took(
    store: Store, demo_versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    versions(store, [demo_versions[0].model_copy(update={"seconds": SECONDS})])
    titles, seconds = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert titles.split() == ["seconds", "training", "evaluation"]
    assert seconds.split() == ["demo@1", "1.5", "23.5"]
