"""Which code a recipe names, and whose recipe it was, for a user who keeps nothing."""

from pathlib import Path

import pytest

from wind.code.named_code import code_in, is_own, note_own
from wind.config.loading import load_config
from wind.config.recipe import DistillConfig


def test_a_user_without_a_home_has_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    note_own(b"{}")
    assert not is_own(b"{}")


def test_functions_are_named_wherever_they_are() -> None:
    mix = "{kind: mix, rewards: {plain: {kind: math}, a: {kind: rule, function: 'm:a'}}}"
    config = load_config(
        "configs/demo.yaml",
        [
            f"reward={mix}",
            "evaluation.match=m:match",
            f"evaluation.judges.both={mix.replace('m:a', 'm:b')}",
            "evaluation.judges.one={kind: rule, function: 'm:one'}",
        ],
    )
    assert {each.setting: each.name for each in code_in(config)} == {
        "reward.rewards.a.function": "m:a",
        "evaluation.match": "m:match",
        "evaluation.judges.both.rewards.a.function": "m:b",
        "evaluation.judges.one.function": "m:one",
    }


def test_an_address_counts_as_code() -> None:
    """A recipe sends it prompts, and the key in whatever variable it names."""
    judge = {"kind": "judge", "url": ["http://one/v1", "http://two/v1/"]}
    config = DistillConfig.model_validate(
        {
            "run": "r",
            "policy": {"path": "p"},
            "prompts": {"source": "p.jsonl"},
            "reward": {"kind": "rule", "function": "a:b"},
            "evaluation": {
                "judges": {"llm": judge, "far": {"kind": "remote", "url": "http://three"}}
            },
        }
    )
    assert [str(each) for each in code_in(config)] == [
        "reward.function a:b",
        "evaluation.judges.llm.url http://one/v1",
        "evaluation.judges.llm.url http://two/v1",
        "evaluation.judges.far.url http://three",
    ]
