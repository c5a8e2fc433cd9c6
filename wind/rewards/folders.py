"""Checks of a reward model's folder, before anything is computed.

Only JSON and the headers of weight files are read, so that a wrong folder ends a run before it
starts. Whether the weights fit the config is checked when they are loaded.
"""

from pathlib import Path
from typing import Any, Literal

from wind.errors import InputError
from wind.nesting import json_value

Architecture = Literal["cross_encoder", "pairrm"]

# Fields of a PairRM's config.json that hold the id of a marker: the marker's text in its tokenizer.
MARKERS = {
    "source_prefix_id": "<|source|>",
    "cand1_prefix_id": "<|candidate1|>",
    "cand2_prefix_id": "<|candidate2|>",
}
HEAD = ("head_layer.1.weight", "head_layer.1.bias", "head_layer.4.weight", "head_layer.4.bias")


def check_one_output(folder: Path, name: str) -> None:
    """Refuse a model that is no classifier with one output.

    Raises InputError if its config says so. `name` is the model's name in the recipe.
    """
    config = _config(folder, name)
    kinds = config.get("architectures") or []
    if kinds and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise InputError(
            f"reward.path {name} is a {kinds[0]} without a score head: "
            "name a sequence-classification model"
        )
    # transformers assumes two if the config says nothing
    outputs = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if outputs != 1:
        raise InputError(
            f"reward.path {name} has {outputs} outputs: "
            "name a sequence-classification model with one"
        )


def pairwise_architecture(folder: Path, name: str, asked: str) -> Architecture:
    """Return the architecture of a stored pairwise reward model.

    It is the one `asked` for, or for "auto" the one that its config names. Raises InputError if the
    folder is no such model or lacks what that architecture needs.
    """
    config = _config(folder, name)
    kinds = config.get("architectures") or []
    if "ranker_type" in config:
        raise InputError(
            f"reward.path {name} is in the layout of the llm-blender package, "
            "without the encoder's config: "
            "name the same model in that of transformers, such as llm-blender/PairRM-hf"
        )
    if asked == "pairrm" or (asked == "auto" and "DebertaV2PairRM" in kinds):
        check_pairrm(folder, name)
        return "pairrm"
    if asked == "auto" and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise InputError(
            f"reward.path {name} is a {kinds[0] if kinds else 'model of no named architecture'}: "
            "name a PairRM or a sequence-classification model with one output "
            "that reads two responses"
        )
    check_one_output(folder, name)
    return "cross_encoder"


def check_pairrm(folder: Path, name: str) -> None:
    """Raise InputError unless the folder holds a PairRM.

    It needs a PairRM's config, special tokens and head.
    """
    config = _config(folder, name)
    if config.get("model_type") != "deberta-v2":
        raise InputError(
            f"reward.path {name} is a {config.get('model_type')} model "
            "and PairRM is a deberta-v2: name a PairRM"
        )
    missing = [field for field in MARKERS if not isinstance(config.get(field), int)]
    if missing:
        raise InputError(f"reward.path {name} is no PairRM: its config.json has no {missing[0]}")
    ids = _added_tokens(folder, name)
    for field, marker in MARKERS.items():
        if marker not in ids:
            raise InputError(
                f"reward.path {name} is no PairRM: its tokenizer has no special token {marker}"
            )
        if ids[marker] != config[field]:
            raise InputError(
                f"reward.path {name} contradicts itself: {marker} is token {ids[marker]} "
                f"of its tokenizer and {field} of its config.json is {config[field]}"
            )
    weights = _weights(folder)
    absent = [weight for weight in HEAD if weight not in weights]
    if absent:
        raise InputError(
            f"reward.path {name} is no PairRM: it has no trained {absent[0]} "
            f"({len(absent)} of the head's 4 weights)"
        )


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json_value((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"reward.path {name} has no config.json that can be read: "
            "copy it from the model's source"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"reward.path {name} has a config.json that is no JSON object: "
            "copy it from the model's source"
        )
    return content


def _added_tokens(folder: Path, name: str) -> dict[str, int]:
    """Return the ids of the tokens added to the fast tokenizer's vocabulary."""
    try:
        content = json_value((folder / "tokenizer.json").read_bytes())
        return {token["content"]: token["id"] for token in content["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"reward.path {name} has no tokenizer.json that can be read: "
            "copy it from the model's source"
        ) from error


def _weights(folder: Path) -> set[str]:
    """Return the names of all stored weights, from file headers."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            names |= json_value(file.read(int.from_bytes(file.read(8), "little"))).keys()
    return names
