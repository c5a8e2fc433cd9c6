"""The command line on a real run: what each command prints, as text and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wind.prompt_parts import part_of
from wind.store.datasets import Store
from wind.store.references import find_version

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "warm_workers")]

Wind = Callable[..., tuple[int, str, str]]


def test_a_run_can_be_looked_into_and_rerun(wind: Wind) -> None:
    code, out, _ = wind("run", "tiny.yaml", "--json")
    assert code == 0
    (version,) = json.loads(out)
    assert version["content"]["iteration"] == 1
    assert (
        version["metrics"]["win_rate"]["low"]
        <= version["metrics"]["win_rate"]["value"]
        <= version["metrics"]["win_rate"]["high"]
    )

    code, out, _ = wind("versions", "--json")
    assert [entry["id"] for entry in json.loads(out)] == [version["id"]]
    code, out, _ = wind("versions", "tiny")
    assert "tiny@1" in out
    assert version["id"][:12] in out

    for name in ("tiny", "tiny@latest", "tiny@1", version["id"][:8]):
        code, out, _ = wind("show", name, "--json")
        assert json.loads(out) == version
    code, out, _ = wind("show", "tiny")
    assert version["content"]["datasets"]["rewards"]["fingerprint"][:12] in out

    code, out, _ = wind(
        "rows", "tiny:rewards", "--where", "sample_index = 2", "--limit", "3", "--json"
    )
    rows = json.loads(out)
    assert len(rows) == 3
    assert {row["sample_index"] for row in rows} == {2}
    digits = version["content"]["datasets"]["rewards"]["fingerprint"][:10]
    code, out, _ = wind("rows", f"rewards/{digits}", "--limit", "1", "--json")
    assert set(json.loads(out)[0]) == {"prompt_id", "sample_index", "reward"}

    code, out, _ = wind("plan", "tiny.yaml", "--json")
    assert {step["outcome"] for step in json.loads(out)} == {"cached"}
    code, out, _ = wind("plan", "tiny.yaml", "--set", "win_rate.estimator=self_counting", "--json")
    planned = [step["stage"] for step in json.loads(out) if step["outcome"] == "run"]
    assert planned[:3] == ["win_rates", "selections", "training"]
    code, out, _ = wind(
        "plan", "tiny.yaml", "--set", "prompts.parts=2", "--iterations", "2", "--json"
    )
    prompts = Store(Path("store")).frame(
        find_version(Store(Path("store")), "tiny").content.datasets["prompts"]
    )
    parts = [
        part_of(row["prompt_id"], 0, 2) for row in prompts.to_dicts() if row["split"] == "train"
    ]
    due = {
        (step["iteration"], step["rows"])
        for step in json.loads(out)
        if step["stage"] == "win_rates"
    }
    assert due == {(1, 4 * parts.count(0)), (2, 4 * parts.count(1))}

    code, out, line = wind("rerun", "tiny", "--from", "evaluation")
    assert code == 0
    code, out, _ = wind("versions", "--json")
    assert [entry["id"] for entry in json.loads(out)] == [version["id"]]

    code, out, _ = wind("verify", "--json")
    assert code == 0
    assert json.loads(out)["bytes"] > 0
    assert json.loads(out)["findings"] == []
    rewards = version["content"]["datasets"]["rewards"]["fingerprint"]
    shard = Path(f"store/datasets/rewards/{rewards}/part-00000.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, _, line = wind("verify", "tiny")
    assert code == 1
    assert str(shard) in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nobody"),
        ("rows", "nobody:rewards"),
        ("rerun", "nobody", "--from", "rewards"),
        ("rerun", "tiny", "--from", "breakfast"),
        ("versions", "nobody"),
        ("serve", "tiny.yaml"),
        ("run", "nowhere.yaml"),
        ("run", "tiny.yaml", "--iterations", "0"),
        ("dance",),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(wind: Wind, arguments: tuple[str, ...]) -> None:
    code, _, line = wind(*arguments)
    assert line.startswith("error: ")
    assert code == 2
