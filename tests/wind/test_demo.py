from pathlib import Path
from typing import Any

import pytest

from wind.demo import make_demo


def test_the_demo_is_two_models_and_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[str, str, int]] = []

    def fake(name: str, accuracy: float) -> Any:
        def make(out: Path, *, seed: int) -> dict[str, float]:
            made.append((name, out.name, seed))
            return {"accuracy": accuracy}

        return make

    monkeypatch.setattr("wind.demo.policy.pretrain_policy", fake("policy", 0.25))
    monkeypatch.setattr("wind.demo.reward.train_reward_model", fake("reward model", 0.75))
    assert make_demo(tmp_path, 3) == {"base_accuracy": 0.25, "reward_accuracy": 0.75}
    assert made == [("policy", "base", 3), ("reward model", "reward", 3)]
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 768
