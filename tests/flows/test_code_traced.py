"""Every stage is computed while each of its calls is watched: no module outside its key has a say
in it.
"""

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.flows.conftest import Recipe
from tests.flows.test_bandit import SETTINGS
from tests.wind.rollouts_case import rollouts_spec, write_reward
from wind.alarms import AlarmsSpec
from wind.benchmarks import BenchmarksSpec, resolve_benchmarks
from wind.code import digests, loading
from wind.code.digests import code_of, is_neutral
from wind.comparison import ComparisonSpec, Iteration
from wind.config.alarms import AlarmsConfig
from wind.config.benchmarks import HarnessBenchmarkConfig
from wind.config.evaluation import EvaluationConfig
from wind.config.loading import bandit_config
from wind.config.models import InferenceConfig
from wind.health import HealthSpec
from wind.matches import MatchesSpec, Opponent
from wind.responses import ResponsesSpec, import_responses
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.nouns import STAGES, STUDIES
from wind.store.references import find_version

pytestmark = pytest.mark.slow

MMLU = HarnessBenchmarkConfig(
    kind="harness", data=str(Path(__file__).resolve().parents[1] / "questions" / "mmlu"), limit=2
)


@contextmanager
def watched() -> Iterator[set[str]]:
    """The modules of this project that execute something in the block, in any thread."""
    files: set[str] = set()

    def call(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    executed: set[str] = set()
    threading.setprofile(call)
    sys.setprofile(call)
    try:
        yield executed
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        below = [
            Path(file).relative_to(loading.ROOT)
            for file in files
            if file.startswith(f"{loading.ROOT}/")
        ]
        names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in below}
        executed |= {name for name in names if name.partition(".")[0] in loading.PACKAGES}


def strangers(stage: str, executed: set[str]) -> set[str]:
    """What executed and is neither in the key of `stage` nor neutral."""
    return {
        module for module in executed - code_of(f"wind.{stage}").keys() if not is_neutral(module)
    }


def traced(stage: str, spec: Mapping[str, Any], store: Store) -> tuple[Dataset, set[str]]:
    """The dataset of a stage computed in this process, and what executed."""
    job = Job(stage=stage, spec=dict(spec), place=Place(root=str(store.root)))
    with watched() as executed:
        made = run(job, lambda done, total: None)
    return made, executed


def of_matches(store: Store, datasets: Mapping[str, Dataset], folder: Path) -> dict[str, set[str]]:
    """What executes while stored responses are read and matched, as the run did neither."""
    prompts = store.frame(datasets["prompts"], ["prompt_id", "split"]).filter(split="eval")
    path = folder / "stored.jsonl"
    rows = ({"prompt_id": prompt_id, "response": "1"} for prompt_id in prompts["prompt_id"])
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = import_responses(store, "path", str(path))
    stored = ResponsesSpec(source=source, prompts=datasets["prompts"])
    responses, reading = traced("responses", stored.model_dump(mode="json"), store)
    spec = MatchesSpec(
        prompts=datasets["prompts"],
        generations_policy=datasets["eval_generations"],
        evaluation=datasets["evaluation"],
        opponents={"stored": Opponent(responses=responses, has_tokens=False)},
        verdicts={},
        tokenizer=find_version(store, "tiny").content.model_in,
        evaluation_config=EvaluationConfig(),
    )
    _, matching = traced("matches", spec.model_dump(mode="json"), store)
    return {"responses": reading, "matches": matching}


def test_no_module_outside_its_key_executes_in_a_stage(
    finished_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_recipe()
    store = Store(tmp_path / "store")
    content = find_version(store, "tiny").content
    seen: dict[str, set[str]] = {}
    for dataset in dict.fromkeys(content.datasets.values()):
        computed_by = store.manifest(dataset).computed_by
        made, executed = traced(computed_by["stage"], computed_by["spec"], store)
        assert made == dataset
        seen.setdefault(dataset.name, set()).update(executed)

    of_run = {name: content.datasets[name] for name in ("metrics", "generations", "rewards")}
    compared = ComparisonSpec(
        iterations=(Iteration(recipe="r", setting="", seed=0, iteration=1, **of_run),)
    )
    _, seen["comparison"] = traced("comparison", compared.model_dump(mode="json"), store)
    tested = AlarmsSpec(
        evaluation=content.datasets["evaluation"],
        evaluation_before=content.datasets["evaluation"],
        against="initial",
        alarms=AlarmsConfig(),
    )
    _, seen["alarms"] = traced("alarms", tested.model_dump(mode="json"), store)
    held_out = HealthSpec(
        generations=content.datasets["eval_generations"], logps=content.datasets["eval_logps"]
    )
    _, seen["health"] = traced("health", held_out.model_dump(mode="json"), store)
    seen |= of_matches(store, content.datasets, tmp_path)
    section = bandit_config(SETTINGS[1::2]).bandit
    study, seen["bandit"] = traced(
        "bandit", {"bandit": section.model_dump(mode="json"), "seed": 0}, store
    )
    _, seen["rates"] = traced(
        "rates",
        {"bandit": study.model_dump(mode="json"), "section": section.model_dump(mode="json")},
        store,
    )
    asked = BenchmarksSpec(
        policy=content.model_out,
        name="mmlu",
        benchmark=resolve_benchmarks(store, {"mmlu": MMLU})["mmlu"],
        inference=InferenceConfig(),
    )
    _, seen["benchmarks"] = traced("benchmarks", asked.model_dump(mode="json"), store)
    write_reward(tmp_path, monkeypatch)
    fresh = rollouts_spec(store, content.model_in, {"name": "jbond"})
    _, seen["rollouts"] = traced("rollouts", fresh.model_dump(mode="json"), store)

    assert seen.keys() == {*STAGES, *STUDIES}, "trace a new stage, too"
    assert {
        stage: found for stage, executed in seen.items() if (found := strangers(stage, executed))
    } == {}
    for stage, executed in seen.items():  # would it be seen?
        with monkeypatch.context() as forgetful:
            forgetful.setattr(digests, "_imports", lambda module: ())
            digests._reached.cache_clear()
            assert strangers(stage, executed), stage
        digests._reached.cache_clear()
