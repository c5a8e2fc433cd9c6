"""How policies enter the store and load from it, and what is said of folders that cannot."""

import json
import shutil
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import wind.models.memory
from wind.config.models import InferenceConfig, PolicyConfig
from wind.errors import ConfigError, InputError
from wind.models import (
    deterministic,
    import_policy,
    load_policy,
    load_tokenizer,
    make_room,
    policy_positions,
    stop_token_ids,
)
from wind.store.datasets import Store


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(path: Path, **fields: Any) -> None:
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_local_folder_enters_the_store_and_loads_whole(store: Store, tiny_model: Path) -> None:
    model = import_policy(store, PolicyConfig(path=str(tiny_model)))
    assert import_policy(store, PolicyConfig(path=str(tiny_model))) == model
    assert store.manifest(model).provenance["origin"] == {"path": str(tiny_model)}
    loaded = load_policy(store, model, InferenceConfig(), "cpu")
    assert not loaded.training
    assert sum(parameter.numel() for parameter in loaded.parameters()) == model.parameters
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_policy(store, model, InferenceConfig(), "cpu") is loaded
    assert {
        parameter.dtype
        for parameter in load_policy(
            store, model, InferenceConfig(dtype="bfloat16"), "cpu"
        ).parameters()
    } == {torch.bfloat16}
    assert load_tokenizer(store, model).bos_token_id == 1


def test_two_models_stay_in_memory_and_the_least_recent_leaves(store: Store, folder: Path) -> None:
    models = []
    for seed in range(3):
        weights = {
            name: tensor + seed for name, tensor in load_file(folder / "model.safetensors").items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        models.append(import_policy(store, PolicyConfig(path=str(folder))))
    first, second = (load_policy(store, model, InferenceConfig(), "cpu") for model in models[:2])
    assert load_policy(store, models[0], InferenceConfig(), "cpu") is first
    load_policy(store, models[2], InferenceConfig(), "cpu")  # drops models[1]
    assert load_policy(store, models[0], InferenceConfig(), "cpu") is first
    assert load_policy(store, models[1], InferenceConfig(), "cpu") is not second


@pytest.mark.parametrize(("has_room", "kept"), [(True, [1, 2]), (False, [2])])
def test_on_a_gpu_models_stay_that_leave_it_room(
    store: Store,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_room: bool,
    kept: list[int],
) -> None:
    """Two at most: a policy and its reference. What does not fit leaves before the next is loaded."""
    asked: list[int] = []

    def room(device: str, needed: int) -> bool:
        asked.append(needed)
        return has_room

    resident: dict[Any, Any] = {}
    monkeypatch.setattr(wind.models, "_resident", resident)
    monkeypatch.setattr(wind.models, "_load", lambda *arguments: torch.nn.Module())
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr(wind.models.memory, "has_room", room)
    models = []
    for number in range(3):
        edit(folder / "config.json", number=number)
        models.append(import_policy(store, PolicyConfig(path=str(folder))))
        load_policy(store, models[-1], InferenceConfig(dtype="bfloat16"), "cuda")
    assert [path for path, *_ in resident] == [
        store.path(models[index]).resolve() for index in kept
    ]
    # a reward model drops them only where it has no room
    make_room(folder, "bfloat16", "cuda")
    assert len(resident) == (2 if has_room else 0)
    # stored in float32
    assert set(asked) == {(folder / "model.safetensors").stat().st_size // 2}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "is not a model folder: no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"only pickle weights \(.bin\); convert to safetensors",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "holds an adapter: merge it into its model first",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 4),
            "unreadable safetensors file",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})
            ),
            "is incomplete: its index names 1 files that are not there, such as "
            "model-00002-of-00002.safetensors",
        ),
    ],
)
def test_a_wrong_folder_is_named_in_one_line(
    store: Store, folder: Path, spoil: Any, message: str
) -> None:
    spoil(folder)
    with pytest.raises(ConfigError, match=message) as raised:
        import_policy(store, PolicyConfig(path=str(folder)))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_revision_belongs_to_a_hub_id_only(store: Store, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="remove the revision"):
        import_policy(store, PolicyConfig(path=str(tiny_model), revision="main"))


def test_a_hub_id_that_cannot_be_reached_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"policy nobody/nothing at revision main .* cannot be reached"
    ) as raised:
        import_policy(store, PolicyConfig(path="nobody/nothing", revision="main"))
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="neither a folder nor a Hub id"):
        import_policy(store, PolicyConfig(path="no such folder"))


def test_a_hub_snapshot_records_its_commit(
    store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Path(shutil.copytree(tiny_model, tmp_path / "snapshots" / ("c0ffee" * 7)[:40]))
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = import_policy(store, PolicyConfig(path="somebody/tiny", revision="v1"))
    assert store.manifest(model).provenance == {
        "origin": {"hub": "somebody/tiny", "revision": "v1", "commit": snapshot.name}
    }
    assert (asked["hub_id"], asked["revision"]) == ("somebody/tiny", "v1")
    assert not any(
        pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in asked["allow_patterns"]
    )


def test_a_missing_weight_is_not_made_up(store: Store, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = import_policy(store, PolicyConfig(path=str(folder)))
    with pytest.raises(InputError, match=r"1 missing weights, such as model\.norm\.weight"):
        load_policy(store, model, InferenceConfig(), "cpu")


def test_a_weight_of_another_shape_and_an_unknown_architecture_are_refused(
    store: Store, folder: Path
) -> None:
    edit(folder / "config.json", intermediate_size=48)
    with pytest.raises(InputError, match=r"models/[0-9a-f]{12} does") as raised:
        load_policy(
            store, import_policy(store, PolicyConfig(path=str(folder))), InferenceConfig(), "cpu"
        )
    assert "\n" not in str(raised.value)
    edit(folder / "config.json", model_type="nonesuch")
    with pytest.raises(InputError, match="does not load as a causal language model"):
        load_policy(
            store, import_policy(store, PolicyConfig(path=str(folder))), InferenceConfig(), "cpu"
        )


def test_stop_tokens_come_from_the_generation_config_then_the_config_then_the_tokenizer(
    folder: Path,
) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 2, 7])
    edit(folder / "config.json", eos_token_id=3)
    assert stop_token_ids(folder) == (2, 7)
    edit(folder / "generation_config.json", eos_token_id=5)
    assert stop_token_ids(folder) == (5,)
    (folder / "generation_config.json").unlink()
    assert stop_token_ids(folder) == (3,)
    edit(folder / "config.json", eos_token_id=None)
    assert stop_token_ids(folder) == (2,)  # the tokenizer's </s>


def test_a_model_that_never_stops_is_refused(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "generation_config.json", eos_token_id=None)
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InputError, match="names no stop token"):
        stop_token_ids(folder)
    edit(folder / "generation_config.json", eos_token_id=["</s>"])
    with pytest.raises(InputError, match="name one token id"):
        stop_token_ids(folder)


def test_deterministic_restores_what_was_set() -> None:
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_importing_and_naming_models_needs_no_torch() -> None:
    check = "import sys, wind.models, wind.generations, wind.logps; "
    check += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert (
        run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "llama", "max_position_embeddings": 2048}, 2048),
        ({"model_type": "gpt2", "n_positions": 64, "n_ctx": 64}, 64),
        # its table has n_positions rows
        ({"model_type": "codegen", "n_positions": 64, "n_ctx": 2048}, 64),
        ({"model_type": "mpt", "max_seq_len": 32}, 32),
        ({"model_type": "own", "model_max_length": 77}, 77),
        (
            {
                "model_type": "gemma3",
                "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 512},
            },
            512,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 100,
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            400,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        (
            {
                "model_type": "qwen2",
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        (
            {
                "model_type": "llama",
                "max_position_embeddings": 100,
                "rope_scaling": {"type": "dynamic", "factor": 4.0},
            },
            100,
        ),
        (
            {
                "model_type": "phi3",
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        (
            {
                "model_type": "phi3",
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 4096,
                },
            },
            4096,
        ),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
        ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 2048}, 2048),
        ({"model_type": "mamba"}, None),
    ],
)
def test_positions_are_read_under_whatever_name(
    tmp_path: Path, config: dict[str, Any], positions: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert policy_positions(tmp_path) == positions
