"""Stored policies: importing a Hugging Face folder and loading it again.

Weights must be safetensors, remote code is never run, and nothing is looked up on a network once a
model is in the store. A loaded model stays in memory for the next shard: the two last used (policy
and reference), on a GPU if both leave it room to work.
"""

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wind.config.models import Attention, DType, InferenceConfig, PolicyConfig
from wind.errors import ConfigError, InputError, WindError, first_line
from wind.files import NotPlainError
from wind.machine.environment import CUBLAS
from wind.models import pretrained
from wind.models.pretrained import Kind, read_json, refuse_code
from wind.redaction import without_home
from wind.store.datasets import Store
from wind.store.handles import Model, label
from wind.store.imports import import_model
from wind.store.incoming import model_files

if TYPE_CHECKING:
    import torch

# loaded models kept in memory per kind of device, at most
RESIDENT = 2
HUB_PATTERNS = [
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "model.safetensors",
    "model-*-of-*.safetensors",
]

# names that configs use for the longest sequence a model has positions for; the first present
# counts
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "model_max_length",
    "seq_length",
)
# model types that state a length but accept sequences of any length
RELATIVE = ("bloom",)
# kinds of rope that rotate by other angles once a batch holds a long sequence
BY_LENGTH = ("dynamic", "longrope", "su")

_resident: dict[tuple[Path, DType, Attention, str], "torch.nn.Module"] = {}


def import_policy(store: Store, config: PolicyConfig, kind: Kind = "AutoModelForCausalLM") -> Model:
    """Return the stored copy of the model that `config` names.

    That is a local folder, or a Hub id at a revision; `kind` is the transformers class that will
    load it. Raises ConfigError in one line if there is no such folder or repository, if it lacks a
    config or safetensors weights, if it needs code of its own, or if one of its files is not a
    plain file or links to outside the folder.
    """
    local = Path(config.path).expanduser()
    origin: dict[str, str | None]
    if local.exists() or config.path.startswith(("/", ".", "~")):
        if config.revision is not None:
            raise ConfigError(
                f"policy.revision is for Hub ids, and {config.path} is a local folder: "
                "remove the revision"
            )
        folder, origin = local, {"path": without_home(config.path)}
    else:
        folder = _download(config.path, config.revision)
        # A revision may be a branch, which moves; the snapshot's folder is named for the commit.
        origin = {"hub": config.path, "revision": config.revision, "commit": folder.name}
    try:
        _check_folder(folder, config.path, kind)
        return import_model(store, folder, provenance={"origin": origin})
    except WindError:
        raise
    except NotPlainError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"{config.path} has an unreadable safetensors file: {first_line(error)}; copy it again"
        ) from error


def load_policy(
    store: Store, model: Model, inference: InferenceConfig, device: str
) -> "torch.nn.Module":
    """Return the stored causal language model in eval mode.

    It is on `device` ("cpu" or "cuda"), with the dtype and attention of `inference`. Raises
    InputError if the folder cannot be loaded as such a model or lacks weights, which would have to
    be invented.
    """
    key = (store.path(model).resolve(), inference.dtype, inference.attention, device)
    loaded = _resident.pop(key, None)
    if loaded is None:
        make_room(key[0], inference.dtype, device, RESIDENT - 1)
        loaded = _load(store, model, inference).to(device)
    # most recently used last
    _resident[key] = loaded
    return loaded


def make_room(folder: Path, dtype: DType, device: str, kept: int = RESIDENT) -> None:
    """Drop loaded policies, those not used for longest first, until the model in `folder` fits.

    At most `kept` stay; on a GPU, those that leave the model room.
    """
    from wind.models import memory

    kind = device.split(":")[0]
    same_kind = [key for key in _resident if key[-1].split(":")[0] == kind]
    needed = memory.weight_bytes(folder, dtype)
    for number, stale in enumerate(same_kind):
        is_full = len(same_kind) - number > kept
        if not is_full and (kind == "cpu" or memory.has_room(device, needed)):
            return
        del _resident[stale]
        memory.release()


def attention_of(folder: Path, attention: Attention) -> str | None:
    """Return the attention implementation to load the model in `folder` with.

    None leaves the choice to transformers. Its sdpa silently leaves out the soft cap of attention
    logits (Gemma 2), so such a model is loaded with eager attention; its eager attention adds
    Falcon's ALiBi twice, once in the mask and once to the logits, so such a model is loaded with
    sdpa. Raises ConfigError if `attention` names an implementation that computes a different
    function.
    """
    config = _text_config(folder)
    kind = config.get("model_type", "")
    right: tuple[str, ...] | None = None
    if config.get("attn_logit_softcapping") is not None:
        what, right = (
            "caps its attention logits",
            ("eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
        )
    elif kind == "falcon" and config.get("alibi"):
        what, right = "has ALiBi biases", ("sdpa",)
    if right is None or attention in right:
        return None if attention == "auto" else attention
    if attention == "auto":
        return right[0]
    raise ConfigError(
        f"attention {attention} computes a different function from this {kind} model's, which "
        f"{what}: set auto or {right[0]}"
    )


def positions_of(config: dict[str, Any]) -> int | None:
    """Return the longest sequence, in tokens, that a model has positions for.

    `config` is its text config; None means no limit. A rope whose scaling stretches an original
    length counts as stretched, unless it stretches only for long sequences, and then for everything
    in their batch: such a model is one function only up to the original length.
    """
    model_type = config.get("model_type")
    if model_type in RELATIVE or (model_type == "falcon" and config.get("alibi")):
        return None
    lengths = [
        config[name] for name in POSITIONS if isinstance(config.get(name), int) and config[name] > 0
    ][:1]
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    original = rope.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings"
    )
    if kind in BY_LENGTH:
        return min([*lengths, *([original] if isinstance(original, int) else [])], default=None)
    if original is None and kind == "linear":
        original = config.get("max_position_embeddings")
    if isinstance(factor, int | float) and isinstance(original, int):
        lengths.append(int(factor * original))
    return max(lengths, default=None)


def policy_positions(folder: Path) -> int | None:
    """Return the longest sequence, in tokens, for the model in `folder`.

    None means no limit.
    """
    return positions_of(_text_config(folder))


def vocabulary_size(folder: Path) -> int | None:
    """Return the number of token ids that the model in `folder` embeds.

    None if its config does not say.
    """
    size = _text_config(folder).get("vocab_size")
    return size if isinstance(size, int) else None


def load_tokenizer(store: Store, model: Model) -> Any:
    """Return the stored model's tokenizer.

    Raises InputError if the folder has none that loads.
    """
    store.manifest(model)
    return _tokenizer(store.path(model).resolve())


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the token ids that end a response, ascending.

    They are taken from the generation config, else the config, else the tokenizer. A model may stop
    on several, so `tokenizer.eos_token` alone is not enough. Raises InputError if none is named.
    """
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
                raise InputError(
                    f"{folder / name} has eos_token_id {value!r}: "
                    "name one token id or a list of them"
                )
            return tuple(sorted(set(ids)))
    token = _tokenizer(folder.resolve()).eos_token_id
    if token is None:
        raise InputError(
            f"{folder} names no stop token: set eos_token_id in generation_config.json"
        )
    return (int(token),)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Prefer torch's deterministic kernels within the block, then restore its settings."""
    import torch

    # the process may not be one of ours, which start with it set
    os.environ.setdefault(*CUBLAS)
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    before_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling takes a seventh of a small model's time, and nothing here reads uninitialized memory
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before, warn_only=before_warn_only)


def _load(store: Store, model: Model, inference: InferenceConfig) -> "torch.nn.Module":
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    store.manifest(model)
    name, folder = label(model), store.path(model)
    attention = attention_of(folder, inference.attention)
    dtype = getattr(torch, inference.dtype)
    loaded, info = pretrained.load_model(
        "AutoModelForCausalLM", folder, name, dtype=dtype, attn_implementation=attention
    )
    # A missing weight would be filled with random numbers, which no later check could tell from a
    # bad model.
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if wrong := sorted(str(entry) for entry in info.get(kind) or ()):
            what = kind.removesuffix("_keys").removesuffix("_msgs")
            raise InputError(
                f"{name} does not fit its config: {len(wrong)} {what} weights, such as "
                f"{wrong[0].strip().splitlines()[0]}"
            )
    loaded.eval().requires_grad_(False)
    policy: torch.nn.Module = loaded
    return policy


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Any:
    return pretrained.load_tokenizer(folder)


def _check_folder(folder: Path, name: str, kind: Kind) -> None:
    """Raise ConfigError unless `folder` holds a config and whole safetensors weights.

    Also refuses a model that needs code of its own. `name` is how the user referred to the folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"policy.path {name} does not exist: name a model folder or a Hub id")
    files = [path.name for path in model_files(folder)]
    if "config.json" not in files:
        raise ConfigError(f"{name} is not a model folder: no config.json")
    try:
        refuse_code(folder, name, kind)
    except InputError as error:
        raise ConfigError(str(error)) from error
    if not any(file.endswith(".safetensors") for file in files):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        missing = (
            "only pickle weights (.bin); convert to safetensors"
            if pickled
            else "no model.safetensors"
        )
        raise ConfigError(f"{name} is not a model folder with weights: {missing}")
    if "model.safetensors.index.json" in files:
        named = set(_json(folder / "model.safetensors.index.json").get("weight_map", {}).values())
        if absent := sorted(named - set(files)):
            raise ConfigError(
                f"{name} is incomplete: its index names {len(absent)} files that are not there, "
                f"such as {absent[0]}"
            )


def _download(hub_id: str, revision: str | None) -> Path:
    """Return the local snapshot of a Hub repository.

    The folder is named for the commit.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=HUB_PATTERNS, ignore_patterns=["*/*"]
            )
        )
    except HFValidationError as error:
        raise ConfigError(f"policy.path {hub_id} is neither a folder nor a Hub id") from error
    except GatedRepoError as error:
        raise ConfigError(
            f"policy {where} is gated on the Hub: accept its license "
            "and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"policy {where} is not on the Hub, and no local folder has that name"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OSError) as error:
        raise ConfigError(
            f"policy {where} is not a local folder and the Hub cannot be reached: "
            f"{first_line(error)}; download it first"
        ) from error


def _text_config(folder: Path) -> dict[str, Any]:
    """Return the config of the language model in `folder`.

    For a model that also sees or hears, it is the part for text.
    """
    config = _json(folder / "config.json")
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content
