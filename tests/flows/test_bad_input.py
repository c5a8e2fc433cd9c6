"""Bad input: each ends with its exit code and one line that says what is wrong and where; nothing
half-written stays.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from data_checks.results import recorded
from wind.store.datasets import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

Wind = Callable[..., tuple[int, str, str]]


def rule(body: str) -> None:
    Path("bad_reward.py").write_text(f"def bad(prompts, responses, answers):\n    {body}\n")


def prompts(*lines: str) -> str:
    Path("bad.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return "prompts.source=bad.jsonl"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "training.learning_rate=1",
            "training.learning_rate is not a setting; did you mean training.lr?",
        ),
        ("trainin.lr=1", "did you mean training"),
        ("training.lr=-1", "training.lr is -1; it must be greater than 0"),
        ("sampling.samples_per_prompt=1", "samples_per_prompt must be at least 2"),
        ("prompts.source=nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("policy.path=.", "is not a model folder: no config.json"),
        ("reward.function=tiny_reward:letters", "defines no letters"),
        ("reward.function=no_such_module:letters", "no_such_module"),
    ],
)
def test_a_wrong_config_ends_with_2(wind: Wind, override: str, says: str) -> None:
    code, _, line = wind("run", "tiny.yaml", "--set", override)
    assert line.startswith("error: ")
    assert says in line
    assert code == 2


@pytest.mark.parametrize(
    ("lines", "overrides", "says"),
    [
        (['{"prompt": "1+1="}', '{"prompt": '], [], "line 2"),
        (['{"question": "1+1="}'], [], "prompt"),
        (['{"prompt": "1+1="}', '{"prompt": "  "}'], [], "line 2"),
        (['{"prompt": [{"role": "user", "content": "1"}]}'], ["prompts.template=none"], "template"),
    ],
)
def test_a_wrong_prompt_is_named(
    wind: Wind, lines: list[str], overrides: list[str], says: str
) -> None:
    settings = [
        argument for override in [prompts(*lines), *overrides] for argument in ("--set", override)
    ]
    code, _, line = wind("run", "tiny.yaml", *settings)
    assert line.startswith("error: ")
    assert says in line
    assert code == 1
    assert list(Store("store").handles("prompts")) == []


def test_messages_need_a_chat_template(wind: Wind, tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    code, _, line = wind("run", "tiny.yaml", "--set", f"policy.path={bare}")
    assert "chat template" in line
    assert code in (1, 2)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise RuntimeError('no luck')", "no luck"),
        ("return [float('nan')] * len(responses)", "nan"),
        ("return [0.0]", "1"),
        ("return ['good'] * len(responses)", "good"),
    ],
)
@pytest.mark.usefixtures("finished_recipe")
def test_a_wrong_reward_is_named(wind: Wind, body: str, says: str) -> None:
    rule(body)
    before = list(Store("store").handles("rewards"))
    code, _, line = wind("run", "tiny.yaml", "--set", "reward.function=bad_reward:bad")
    assert line.startswith("error: ")
    assert "bad_reward" in line
    assert says in line
    assert code == 1
    assert list(Store("store").handles("rewards")) == before


@pytest.mark.usefixtures("finished_recipe")
def test_constant_rewards_are_blocked_by_a_check(wind: Wind) -> None:
    """A data check ends the run with 3, keeps its result and its page, and nothing downstream is
    computed.
    """
    rule("return [1.0] * len(responses)")
    before = set(Store("store").handles("rewards"))
    wins = list(Store("store").handles("win_rates"))
    code, _, line = wind("run", "tiny.yaml", "--set", "reward.function=bad_reward:bad")
    assert "rewards/" in line
    assert code == 3
    (rewards,) = set(Store("store").handles("rewards")) - before
    result = recorded(Store("store"), rewards)  # type: ignore[arg-type]
    assert result is not None
    assert not result.success
    assert "<html" in Path("store", result.path).read_text().lower()
    assert list(Store("store").handles("win_rates")) == wins


@pytest.mark.parametrize("root", ["prompts.jsonl/store", "/proc/store"])
def test_a_root_that_cannot_be_written(wind: Wind, root: str) -> None:
    code, _, line = wind("run", "tiny.yaml", "--set", f"root={root}")
    assert line.startswith("error: ")
    assert root.split("/")[-2] in line
    assert code == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root only")
def test_a_full_disk_loses_nothing(wind: Wind, tmp_path: Path) -> None:
    """The run ends with one line; with room again, a rerun goes on to the end."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", str(small)], check=True)
    try:
        arguments = ("run", "tiny.yaml", "--set", f"root={small}/store")
        code, _, line = wind(*arguments)
        assert "No space left on device" in line
        assert code == 1
        subprocess.run(["mount", "-o", "remount,size=32m", str(small)], check=True)
        code, _, _ = wind(*arguments)
        assert code == 0
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
