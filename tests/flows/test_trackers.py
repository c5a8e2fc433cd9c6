"""Trackers, each by its own package: what they keep, and that none of them can hurt a run."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flows.trackers
from flows.distill import distill
from flows.trackers import Message, refuse_missing
from flows.trackers.reports import Report, Sample
from tasks.run import open_run
from tests.flows.conftest import Recipe
from wind.config.recipe import DistillConfig
from wind.config.trackers import TRACKERS, TrackersConfig
from wind.errors import ConfigError
from wind.machine import processes
from wind.store.datasets import Store
from wind.store.references import find_version
from wind.store.versions import Versions

HOSTILE = "<script>alert(1)</script> | ![x](http://evil.example/x.png) \x1b[31m\u202e`#`"
SHOWN = HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
KEY = "0123456789abcdef"


def report(iteration: int) -> Report:
    """A version of a run called tiny, whose win rate is 0.5, 0.625, ..."""
    sample = Sample(
        prompt_id="p", sample_index=0, prompt="1+1=", response=SHOWN, reward=1.5, win_rate=0.75
    )
    return Report(
        run="tiny",
        key=KEY,
        number=iteration,
        iteration=iteration,
        id=f"{iteration:064x}",
        path=f"store/runs/tiny/versions/{iteration:04d}.json",
        published=1.7e9,
        config={"policy.path": "models/base", "seed": 0, "evaluation.match": None},
        numbers={"metrics/win_rate": 0.375 + iteration / 8, "seconds/training": 2.0},
        samples=(sample,),
    )


def speak(tracker: str, section: dict[str, Any], folder: Path) -> None:
    """Tell the tracker about two versions."""
    for iteration in (1, 2):
        flows.trackers._speak(
            Message(tracker=tracker, section=section, folder=str(folder), report=report(iteration)),
            timeout=120,
        )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which a tracker should leave nothing."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.mark.slow
def test_tensorboard_reads_its_events(tmp_path: Path, home: Path) -> None:
    speak("tensorboard", {"folder": "events"}, tmp_path / "events")
    program = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
texts = {
    tag: [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)]
    for tag in events.Tags()["tensors"]
}
print(json.dumps([scalars, texts]))
"""
    (folder,) = (tmp_path / "events").iterdir()
    assert folder.name == f"tiny-{KEY}"
    said = subprocess.run(
        processes.python("-c", program, str(folder)), capture_output=True, check=True
    ).stdout
    scalars, texts = json.loads(said)
    assert scalars == {
        "metrics/win_rate": [[1, 0.5], [2, 0.625]],
        "seconds/training": [[1, 2.0], [2, 2.0]],
    }
    assert f"{2:064x}" in texts["version/text_summary"][1]
    table = texts["samples/text_summary"][0]
    assert "<" not in table
    assert "![" not in table
    assert "alert&#40;1&#41;" in table
    assert table.splitlines()[-1].count("|") == 6
    assert [*home.iterdir()] == []


@pytest.mark.slow
def test_wandb_writes_a_run_that_it_can_send(tmp_path: Path, home: Path) -> None:
    section = {"project": "wind", "entity": None, "mode": "offline"}
    speak("wandb", section, tmp_path / "wandb")
    program = """
import json, struct, sys
from wandb.proto.wandb_internal_pb2 import Record

# the records of a log in LevelDB's format, after a header of seven bytes
def records(content):
    whole, place = b"", 7
    while place + 7 <= len(content):
        if (left := -place % 2**15) and left < 7:
            place += left
        _, size, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(whole)
            whole = b""

runs, history, config = [], [], {}
with open(sys.argv[1], "rb") as file:
    content = file.read()
for record in records(content):
    if record.HasField("run"):
        runs.append([record.run.run_id, record.run.display_name, record.run.host])
    for item in (*record.run.config.update, *record.config.update):
        config[item.key] = json.loads(item.value_json)
    if record.HasField("history"):
        items = record.history.item
        history.append({item.nested_key[0]: json.loads(item.value_json) for item in items})
print(json.dumps([runs, history, config]))
"""
    files = sorted((tmp_path / "wandb/wandb").glob(f"offline-run-*/run-{KEY}.wandb"))
    assert len(files) == 2
    for number, file in enumerate(files, start=1):
        said = subprocess.run(
            processes.python("-c", program, str(file)), stdout=subprocess.PIPE, check=True
        ).stdout
        runs, (history,), config = json.loads(said)
        assert runs == [[KEY, "tiny", "wind"]], "it names no machine"
        assert history["metrics/win_rate"] == 0.375 + number / 8
        assert (history["iteration"], history["_step"]) == (number, number)
        assert config["policy.path"] == "models/base"
        assert config["wind.id"] == f"{number:064x}"
        (table,) = (file.parent / "files/media/table").glob("samples*.json")
        content = json.loads(table.read_text())
        assert content["columns"] == [*Sample.model_fields]
        assert content["data"] == [["p", 0, "1+1=", SHOWN, 1.5, 0.75]]
    assert [*home.iterdir()] == []


@pytest.mark.slow
def test_trackio_keeps_both_versions_in_one_run(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "nobody/nothing")
    speak("trackio", {"project": "wind"}, tmp_path / "trackio")
    with sqlite3.connect(tmp_path / "trackio/wind.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step")
        found = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    database.close()
    assert [(name, step) for name, step, _ in found] == [(f"tiny-{KEY}", 1), (f"tiny-{KEY}", 2)]
    assert [metrics["metrics/win_rate"] for _, _, metrics in found] == [0.5, 0.625]
    assert found[1][2]["wind.id"] == f"{2:064x}"
    assert SHOWN in json.dumps(found[0][2], ensure_ascii=False).replace(r"\\", "\\")
    assert [*home.iterdir()] == []


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """The address of a real server on loopback, with its database in a folder of the test."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder = tmp_path / "mlflow"
    folder.mkdir()
    command = processes.python("-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1")
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    with (
        (folder / "log").open("wb") as log,
        processes.start(
            command,
            env=processes.environment(**flows.trackers.QUIET, **variables),
            cwd=folder,
            stdout=log,
            stderr=log,
            descendants=True,
        ) as server,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.end()


def _wait_for(url: str, server: processes.Process, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The server's answer to a request of its REST interface."""
    request = urllib.request.Request(
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: dict[str, Any] = json.loads(answer.read())
    return content


@pytest.mark.slow
def test_mlflow_has_one_run_with_both_versions(
    tmp_path: Path, home: Path, mlflow_server: str
) -> None:
    speak("mlflow", {"url": mlflow_server, "experiment": "wind"}, tmp_path / "trackers")
    api = f"{mlflow_server}/api/2.0/mlflow"
    found = ask(f"{api}/experiments/get-by-name?experiment_name=wind")["experiment"]
    (run,) = ask(f"{api}/runs/search", {"experiment_ids": [found["experiment_id"]]})["runs"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("tiny", "FINISHED")
    tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
    assert (tags["wind.id"], tags["wind.version"]) == (f"{2:064x}", "tiny@2")
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params["policy.path"] == "models/base"
    run_id = run["info"]["run_id"]
    history = ask(f"{api}/metrics/get-history?run_id={run_id}&metric_key=metrics/win_rate")
    assert [(each["step"], each["value"]) for each in history["metrics"]] == [(1, 0.5), (2, 0.625)]
    table = f"{mlflow_server}/get-artifact?run_id={run_id}&path=samples/0002.json"
    assert ask(table)["data"] == [["p", 0, "1+1=", SHOWN, 1.5, 0.75]]
    assert [*home.iterdir()] == []


def test_a_missing_package_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trackers = TrackersConfig.model_validate({"wandb": {"project": "wind"}})
    refuse_missing(trackers)
    monkeypatch.setattr(flows.trackers, "find_spec", lambda name: None)
    refuse_missing(TrackersConfig())
    with pytest.raises(ConfigError) as refused:
        refuse_missing(trackers)
    assert str(refused.value) == (
        "trackers.wandb needs a package that is not installed: pip install wandb"
    )


def test_every_tracker_has_a_module_and_a_section() -> None:
    folder = Path(flows.trackers.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in TRACKERS)
    assert TRACKERS.keys() <= TrackersConfig.model_fields.keys()


def run(config: DistillConfig) -> None:
    with open_run(config) as here:
        distill(here.config)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server", "warm_workers")
def test_a_run_tells_each_version_once_and_outlives_a_tracker_that_hangs(
    finished_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Store(tmp_path / "store")
    before = find_version(store, "tiny")
    told: list[Message] = []
    speak_for_real = flows.trackers._speak

    def listened(message: Message, timeout: float) -> None:
        told.append(message)
        speak_for_real(message, timeout)

    monkeypatch.setattr(flows.trackers, "_speak", listened)
    tensorboard = f"trackers.tensorboard.folder={tmp_path / 'events'}"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow = f"trackers.mlflow.url=http://127.0.0.1:{silent.getsockname()[1]}"
        run(finished_recipe(mlflow, "trackers.timeout=2"))
        warnings = [line for line in capsys.readouterr().err.splitlines() if "trackers" in line]
    assert warnings == [
        "  warning: trackers.mlflow did not take tiny@1, it took more than 2 seconds; "
        "the run goes on, and a rerun tells it again"
    ]
    run(finished_recipe(tensorboard, "trackers.prompts=2"))
    assert [message.tracker for message in told] == ["mlflow", "tensorboard"]
    shown = told[1].report
    assert shown.numbers["metrics/win_rate"] == before.metrics["win_rate"]["value"]
    assert shown.numbers["low/win_rate"] == before.metrics["win_rate"]["low"]
    assert shown.numbers["seconds/training"] == before.seconds["training"]
    assert (shown.id, shown.config["training.lr"]) == (before.id, 1e-3)
    assert len({each.prompt_id for each in shown.samples}) == 2
    assert len(shown.samples) == 4

    run(finished_recipe(tensorboard))
    assert len(told) == 2, "nothing is told twice"
    run(finished_recipe(tensorboard, "iterations=2"))
    assert [(m.tracker, m.report.iteration) for m in told[2:]] == [("tensorboard", 2)]
    assert told[2].report.key == shown.key
    assert len([*(tmp_path / "events").iterdir()]) == 1
    # no tracker is part of a version
    assert next(iter(Versions(store, "tiny"))).id == before.id
    assert "trackers" not in find_version(store, "tiny").content.recipe


@pytest.mark.slow
def test_a_report_has_no_secrets_and_no_endless_text(
    finished: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(finished)
    version, secret = find_version(store, "tiny"), "sesame-opens-the-door"
    monkeypatch.setenv("SOME_API_KEY", secret)
    frame = Store.frame

    def leaking(store: Store, handle: Any, *arguments: Any, **more: Any) -> Any:
        rows = frame(store, handle, *arguments, **more)
        if "response" not in rows.columns:
            return rows
        import polars as pl

        return rows.with_columns(response=pl.lit(f"{secret}\x1b[2J{HOSTILE}\n{'a' * 1_000_000}"))

    monkeypatch.setattr(Store, "frame", leaking)
    told = Report.of(version, recipe(), store, key=KEY, prompts=1)
    assert secret not in told.model_dump_json()
    for each in told.samples:
        assert each.response.startswith("[redacted]\\x1b[2J")
        assert each.response.replace("\n", "").isprintable()
        assert each.response.endswith(" more characters")
        assert len(each.response) < 5000
    assert sys.getsizeof(told.model_dump_json()) < 100_000
