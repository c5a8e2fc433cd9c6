"""Plans with estimates: of a run that never was, of other hardware, beside what a run took."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import estimates
from flows.estimates import Hardware
from flows.plan import planned
from flows.show_plan import totals
from tests.flows.conftest import Recipe, Wind
from wind.config.recipe import DistillConfig
from wind.planning.probe import Measured

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "configs" / "llama3-ultrafeedback-wind.yaml"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
RATES = Measured(
    start=5, memory=5e8, prefill=1e-4, step=1e-2, row=1e-3, forward=1e-4, trained=3e-4, update=1e-9
)


@pytest.fixture
def a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CPU is this one, which takes no time to measure."""
    monkeypatch.setattr(estimates, "probed", lambda *given: (RATES, "a probe of this CPU"))


@pytest.mark.usefixtures("a_probe")
def test_a_run_that_never_was_has_rows_tokens_seconds_and_memory(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the twenty prompts, some are held out: the plan has rendered them, and stored none."""
    config = recipe("iterations=2")
    steps = planned(config, None, Hardware())
    assert not list((tmp_path / "store" / "datasets").glob("*"))
    assert [step["dataset"] for step in steps if step["seconds"] is None] == []
    # the opponent of the first iteration is that of the second
    by_name = {
        (step["iteration"], step["dataset"]): step for step in steps if step["outcome"] == "run"
    }
    sampled, held_out = by_name[1, "generations"], by_name[1, "eval_generations"]
    assert sampled["rows"] / 4 + held_out["rows"] / 2 == 20
    assert sampled["tokens"] == sampled["rows"] * 3  # half of six
    assert (by_name[2, "logps"]["tokens"], sampled["does_not_fit"]) == (
        2 * by_name[1, "logps"]["tokens"],
        None,
    )
    assert by_name[1, "training"]["memory"].startswith("0.7")
    assert 0 < totals(steps)["seconds"] < 60
    said = capsys.readouterr().err.splitlines()
    assert said[-3:] == [
        "lengths: responses are assumed to have half of max_new_tokens, 3",
        "seconds: a probe of this CPU, or what was measured on this hardware where the store has it",
        "rewards: kind rule is assumed to take 0.1 ms for a response",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("a_probe", "prefect_server")
def test_after_a_run_planned_stands_beside_what_it_took(
    finished_recipe: Callable[..., DistillConfig], wind: Wind
) -> None:
    """Lengths are then the run's own, and seconds those that this hardware took."""
    steps = planned(finished_recipe("iterations=2"), None, Hardware(), compare=True)
    done = {step["dataset"]: step for step in steps if "took" in step}
    # light stages may take less than what is recorded
    assert all(done[name]["took"]["seconds"] > 0 for name in ("generations", "logps", "training"))
    next_one = {step["dataset"]: step for step in steps if step["outcome"] == "run"}
    assert next_one["logps"]["basis"] == "measured"
    code, out, said = wind("plan", "tiny.yaml", "--compare", "--price", "2.5")
    assert code == 0
    assert "planned s" in out
    assert "0 datasets to compute" in out
    assert said.startswith("rewards: kind rule is assumed")


def test_eight_gpus_are_planned_from_a_config_alone(wind: Wind, tmp_path: Path) -> None:
    """Nothing is fetched: neither the gated model nor the prompts are on this machine."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    given = ["plan", str(LLAMA), "--gpu", "H100", "--gpus", "8", "--prompts", "60000"]
    given += ["--policy-config", str(tmp_path / "config.json"), "--iterations", "1"]
    code, out, _ = wind(*given, "--json")
    steps = {step["dataset"]: step for step in json.loads(out)}
    # 60,000 less two percent held out, a third of it, five responses each
    assert (code, steps["generations"]["rows"]) == (0, 19_600 * 5)
    assert steps["eval_generations"]["rows"] == 1200 * 2
    assert steps["training"]["does_not_fit"] is None
    seconds = totals(list(steps.values()))["seconds"]
    code, out, _ = wind(*given, "--price", "24")
    assert code == 0
    assert out.splitlines()[-1] == f"{seconds / 3600 * 24:.2f} dollars at 24 an hour"
    assert any(line.startswith("most memory: ") for line in out.splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "8"], "--gpus and --policy-config are for a plan with --gpu NAME"),
        (["--gpu", "V9"], "no GPU called 'V9' is known to plans"),
        (
            ["--gpu", "H100", "--gpus", "3"],
            "batch_prompts is 4, no multiple of micro_prompts 4 on 3",
        ),
    ],
)
def test_hardware_that_cannot_be_planned_is_said(wind: Wind, options: list[str], said: str) -> None:
    code, _, err = wind("plan", "tiny.yaml", *options)
    assert code == 2
    assert said in err


def test_what_does_not_fit_says_what_to_set(wind: Wind, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code, out, _ = wind(
        "plan", str(LLAMA), "--gpu", "H100", "--gpus", "8", "--iterations", "1",
        "--policy-config", str(tmp_path / "config.json"), "--set", "training.zero_stage=1",
    )  # fmt: skip
    assert code == 0
    [line] = [line for line in out.splitlines() if " does not fit (" in line]
    assert line.startswith("training does not fit (")
    # 81.6 GB, of which ZeRO 2 shards the 32 of gradient sums over eight
    assert line.endswith(": set training.zero_stage=2")
