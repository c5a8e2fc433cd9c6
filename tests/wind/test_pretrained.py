"""Hugging Face folders that name code: it never runs, nothing is asked, and what transformers has
itself loads.
"""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wind.config.models import InferenceConfig, PolicyConfig
from wind.config.rewards import ClassifierRewardConfig
from wind.errors import ConfigError, InputError, WindError
from wind.models import import_policy, load_policy, load_tokenizer
from wind.models.pretrained import load_tokenizer as tokenizer_of
from wind.rewards import resolve_reward
from wind.store.datasets import Store
from wind.store.imports import import_model

ROOT = Path(__file__).resolve().parents[2]
RAN = "ran"  # the file that the code in a folder writes if it runs
EVIL = f"""from pathlib import Path
Path(__file__).with_name({RAN!r}).touch()
Path({RAN!r}).touch()
"""
AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the tiny model with Python beside it, which at the end has not run."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "evil.py").write_text(EVIL)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL)
    yield folder
    assert not list(tmp_path.rglob(RAN))


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


def used(store: Store, folder: Path) -> None:
    """Import the folder as a policy, load its model and its tokenizer."""
    model = import_policy(store, PolicyConfig(path=str(folder)))
    load_policy(store, model, InferenceConfig(), "cpu")
    assert load_tokenizer(store, model).bos_token_id == 1


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        (
            "config.json",
            {"model_type": "evil", "auto_map": AUTO_MAP},
            "AutoConfig: evil.EvilConfig in config.json",
        ),
        ("config.json", {"model_type": None, "auto_map": AUTO_MAP}, "evil.EvilConfig"),
        ("config.json", {"model_type": ["llama"], "auto_map": AUTO_MAP}, "evil.EvilConfig"),
        (
            "config.json",
            {"model_type": "evil", "auto_map": {"AutoConfig": "other/repo--evil.EvilConfig"}},
            "other/repo--evil",
        ),
        # transformers has this one, but no causal language model of it
        ("config.json", {"model_type": "clip", "auto_map": AUTO_MAP}, "evil.EvilConfig"),
        (
            "config.json",
            {"text_config": {"model_type": {}, "auto_map": AUTO_MAP}},
            "in config.json text_config",
        ),
        (
            "config.json",
            {"text_config": {"model_type": "evil", "auto_map": AUTO_MAP}},
            "in config.json text_config",
        ),
        (
            "config.json",
            {"parts": [{"auto_map": {"AutoModel": "evil.Evil"}}]},
            "AutoModel: evil.Evil in config.json parts",
        ),
        (
            "config.json",
            {"custom_pipelines": {"x": {"impl": "evil.Pipe"}}},
            "custom_pipelines in config.json",
        ),
        (
            "generation_config.json",
            {"custom_generate": "other/repo"},
            "custom_generate in generation_config.json",
        ),
        (
            "config.json",
            {"attn_implementation": "other/kernels"},
            "attn_implementation in config.json",
        ),
        (
            "config.json",
            {"text_config": {"_attn_implementation": {"": "other/k"}}},
            "in config.json text_config",
        ),
        (
            "config.json",
            {"vision_config": {"backbone": "other/repo", "use_pretrained_backbone": True}},
            "use_pretrained_backbone",
        ),
        (
            "adapter_config.json",
            {"base_model_name_or_path": "other/repo"},
            "holds an adapter: merge it",
        ),
    ],
)
def test_what_would_run_or_fetch_something_is_refused_at_import(
    store: Store, folder: Path, file: str, fields: dict[str, Any], said: str
) -> None:
    edit(folder / file, **fields)
    with pytest.raises(ConfigError) as raised:
        import_policy(store, PolicyConfig(path=str(folder)))
    assert said in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_its_own_is_refused_at_import(store: Store, folder: Path) -> None:
    edit(folder / "config.json", model_type="clip_vision_model", auto_map=None)
    for auto_map in (["evil.Tokenizer", None], {"AutoTokenizer": ["evil.Tokenizer", None]}):
        edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)
        with pytest.raises(
            ConfigError,
            match=r"needs code of its own \(.*evil.Tokenizer.* in tokenizer_config.json\)",
        ):
            import_policy(store, PolicyConfig(path=str(folder)))


def test_a_reward_model_is_refused_by_what_would_load_it(store: Store, folder: Path) -> None:
    """transformers has Bamba as a causal language model, and no classifier of it."""
    edit(
        folder / "config.json",
        model_type="bamba",
        auto_map={"AutoModelForSequenceClassification": "evil.Evil"},
        num_labels=1,
    )
    with pytest.raises(ConfigError, match="needs code of its own"):
        resolve_reward(store, ClassifierRewardConfig(kind="classifier", path=str(folder)))
    import_policy(store, PolicyConfig(path=str(folder)))


def test_a_stale_map_beside_a_class_of_transformers_is_ignored(store: Store, folder: Path) -> None:
    edit(
        folder / "config.json",
        auto_map=AUTO_MAP,
        architectures=["EvilForCausalLM"],
        _name_or_path="other/repo",
    )
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Fast"]},
    )
    edit(folder / "generation_config.json", auto_map={"AutoModel": "evil.Evil"})
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "evil.Evil"})
    used(store, folder)


@pytest.mark.slow
def test_nothing_is_asked_where_there_is_a_terminal_to_ask_on(store: Store, folder: Path) -> None:
    """What is in a store, whoever put it there, is loaded by the same rule; standard input stays
    open: to ask is to wait.
    """
    edit(folder / "config.json", model_type="evil", auto_map=AUTO_MAP)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map=["evil.Tokenizer", None],
    )
    model = import_model(store, folder)
    program = """
import sys
from functools import partial
from pathlib import Path
from transformers import AutoConfig
from wind.models import pretrained
model = partial(pretrained.load_model, "AutoModelForCausalLM", name="it")
within = AutoConfig.from_pretrained  # as transformers does for a model within a model, without our settings
for load in (model, pretrained.load_config, pretrained.load_tokenizer, within):
    try:
        load(Path(sys.argv[1]))
    except ValueError as error:
        print("refused", "\\n" in str(error))
"""
    command = [sys.executable, "-c", program, str(store.path(model))]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "refused False\n" * 4
        assert process.wait() == 0


@pytest.mark.parametrize(
    "name",
    ["AutoModelForCausalLM", "AutoTokenizer", "pipeline", "GenerationConfig", "RagTokenizer"],
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_class_that_is_none_is_one_line(folder: Path, name: str, file: str) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class=None)
    edit(folder / file, tokenizer_class=name)
    with pytest.raises(
        InputError, match=rf"tokenizer_class '{name}' in its {file} is not a tokenizer"
    ):
        tokenizer_of(folder)


@pytest.mark.parametrize("value", [["a"], {"a": 1}, 7])
def test_a_tokenizer_class_of_another_type_is_one_line(folder: Path, value: object) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class=value)
    with pytest.raises(InputError) as raised:
        tokenizer_of(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"]
)
def test_deep_json_is_one_line(store: Store, folder: Path, file: str) -> None:
    (folder / file).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(WindError) as raised:
        used(store, folder)
    assert "\n" not in str(raised.value)


CALLS = {
    "from_pretrained",
    "from_config",
    "snapshot_download",
    "hf_hub_download",
    "load_dataset",
    "LLM",
    "pipeline",
    "load_from_disk",
}
ALLOWED = {
    ("wind/models/pretrained.py", "from_pretrained"),
    ("wind/models/pretrained.py", "from_config"),
    ("wind/models/__init__.py", "snapshot_download"),  # files alone, none of them code
    ("wind/prompts/sources.py", "load_dataset"),  # of the Hub; the library runs no scripts
    ("wind/generations/vllm.py", "LLM"),
}


def loads(path: Path) -> Iterator[tuple[str, ast.Call | ast.Attribute]]:
    """What in a file has a Hugging Face library, or vLLM, load something: calls, and functions that
    are handed on.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in CALLS:
            yield node.attr, node
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS
        ):
            yield node.func.id, node


def test_there_is_one_loader() -> None:
    files = [
        path
        for part in ("wind", "tasks", "flows", "data_checks", "configs")
        for path in (ROOT / part).rglob("*.py")
    ]
    found = {(path.relative_to(ROOT).as_posix(), name) for path in files for name, _ in loads(path)}
    assert found == ALLOWED
    (engine,) = [
        node
        for name, node in loads(ROOT / "wind/generations/vllm.py")
        if name == "LLM" and isinstance(node, ast.Call)
    ]
    given = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in engine.keywords
        if isinstance(keyword.value, ast.Constant)
    }
    assert (given["trust_remote_code"], given["load_format"]) == (False, "safetensors")
