"""Load Hugging Face folders from disk, without running code that they name.

Weights are read as safetensors. A model folder is data, but its configs can name code: classes of
its own (`auto_map`), kernels and backbones of other repositories, generation steps. None of it is
ever run or fetched: a folder that needs it is refused in one line, and one that names its own
classes for a model that transformers has too (Phi, Falcon, MPT, ...) is loaded with the
transformers class.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from wind.errors import InputError, first_line
from wind.files import NotPlainError, read_plain
from wind.nesting import json_value

Kind = Literal["AutoModelForCausalLM", "AutoModelForSequenceClassification"]

FROM_DISK: Final = {"local_files_only": True, "trust_remote_code": False}
# files in which a folder can name code
CONFIGS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
# where transformers lists the model types that each class loads
NATIVE: Final[dict[Kind, str]] = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
# settings that hold a word, or the name of a kernel repository
ELSEWHERE: Final = ("attn_implementation", "experts_implementation")
CALLED: Final[dict[Kind, str]] = {
    "AutoModelForCausalLM": "a causal language model",
    "AutoModelForSequenceClassification": "a reward model",
}
NEVER_NATIVE: Final = ("custom_pipelines", "custom_generate")


def load_model(
    kind: Kind, folder: Path, name: str, loader: Any = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model in `folder`, and transformers' report on loading it.

    It is loaded by the transformers class `kind`, or by `loader` instead; `name` is what messages
    call it. Raises InputError in one line if the folder needs code that it names, or does not load.
    """
    import transformers

    try:
        refuse_code(folder, name, kind)
        _never_ask()
        load = (loader or getattr(transformers, kind)).from_pretrained
        model, told = load(
            folder, use_safetensors=True, output_loading_info=True, **FROM_DISK, **options
        )
    except (InputError, MemoryError):
        raise
    # the folder comes from outside, and libraries may raise anything on it
    except Exception as error:
        raise InputError(f"{name} does not load as {CALLED[kind]}: {first_line(error)}") from error
    return model, told


def load_config(folder: Path) -> Any:
    """Return the transformers config in `folder`.

    Raises InputError in one line if there is none that loads.
    """
    from transformers import AutoConfig

    try:
        _never_ask()
        return AutoConfig.from_pretrained(folder, **FROM_DISK)
    except MemoryError:
        raise
    # as above
    except Exception as error:
        raise InputError(f"{folder} has no config.json that loads: {first_line(error)}") from error


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in `folder`.

    Raises InputError in one line if there is none that loads without code of its own.
    """
    from transformers import AutoTokenizer

    try:
        _never_ask()
        _refuse_other_classes(folder)
        return AutoTokenizer.from_pretrained(folder, **FROM_DISK)
    except (InputError, MemoryError):
        raise
    # as above
    except Exception as error:
        raise InputError(f"{folder} has no tokenizer that loads: {first_line(error)}") from error


def model_without_weights(config: Any) -> Any:
    """Return the causal language model of `config` with arbitrary weights.

    It serves to look up their names and shapes.
    """
    from transformers import AutoModelForCausalLM

    _never_ask()
    return AutoModelForCausalLM.from_config(
        config, trust_remote_code=FROM_DISK["trust_remote_code"]
    )


def refuse_code(folder: Path, name: str, kind: Kind) -> None:
    """Raise InputError if loading `folder` as `kind` needs code or downloads.

    A config may name such code, or files to fetch. `name` is what messages call the folder. Reads
    small files, and imports transformers only if there is an `auto_map`.
    """
    configs = {
        file: content for file in CONFIGS if isinstance(content := read_json(folder / file), dict)
    }
    model_type = configs.get("config.json", {}).get("model_type")
    for file, content in configs.items():
        for place, section in _sections(content, file):
            if used := next((key for key in NEVER_NATIVE if section.get(key)), None):
                raise InputError(
                    f"{name} names code of its own ({used} in {place}), which is never run: "
                    "remove it"
                )
            if (used := _fetched(section)) is not None:
                raise InputError(
                    f"{name} names something to fetch from elsewhere ({used} in {place}): remove it"
                )
            if (auto_map := section.get("auto_map")) and not _is_native(
                file, section, content, model_type, kind
            ):
                raise InputError(
                    f"{name} needs code of its own ({_shown(auto_map)} in {place}), which is never "
                    f"run, and transformers {_version()} has no class for it: "
                    "name a model that transformers has"
                )
    # transformers would load the adapter onto whatever model its config names
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{name} holds an adapter: merge it into its model first, or name the model alone"
        )


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, or None without a file.

    Raises InputError in one line if it cannot be read as JSON.
    """
    try:
        return json_value(read_plain(path))
    except FileNotFoundError:
        return None
    except NotPlainError as error:
        raise InputError(str(error)) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_line(error)}") from error


def _sections(content: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping in a config with its location: `config.json text_config`."""
    if isinstance(content, dict):
        yield place, content
        for key, value in content.items():
            if key != "auto_map":
                yield from _sections(value, f"{place} {key}")
    elif isinstance(content, list):
        for value in content:
            yield from _sections(value, place)


def _fetched(section: dict[str, Any]) -> str | None:
    """Return the setting that has transformers fetch from another repository."""
    if section.get("use_pretrained_backbone"):
        return "use_pretrained_backbone"
    for key in ELSEWHERE:
        for name in (key, f"_{key}", f"_{key}_internal"):
            value = section.get(name)
            if any(
                "/" in str(each)
                for each in (value.values() if isinstance(value, dict) else [value])
            ):
                return name
    return None


def _is_native(
    file: str, section: dict[str, Any], content: dict[str, Any], model_type: Any, kind: Kind
) -> bool:
    """Return True if transformers has a class of its own for `section`.

    `section` of `file` maps to a class in the folder.
    """
    from transformers.models.auto import configuration_auto, modeling_auto, tokenization_auto

    known = configuration_auto.CONFIG_MAPPING_NAMES
    # a nested config, such as text_config
    if file == "config.json" and section is not content:
        return str(section.get("model_type")) in known
    if file == "tokenizer_config.json":
        return str(model_type) in tokenization_auto.TOKENIZER_MAPPING_NAMES or _is_tokenizer(
            section.get("tokenizer_class")
        )
    types = getattr(modeling_auto, NATIVE[kind]) if file == "config.json" else known
    return str(model_type) in types and str(model_type) in known


def _is_tokenizer(name: Any) -> bool:
    """Return True if transformers has a tokenizer class of that name."""
    import transformers

    found = getattr(transformers, str(name), None) or getattr(transformers, f"{name}Fast", None)
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)


def _refuse_other_classes(folder: Path) -> None:
    """Raise InputError if `tokenizer_class` in a config names another kind of class.

    transformers would load it all the same, a model or another loader, and without the settings of
    this module.
    """
    import transformers

    for file in ("tokenizer_config.json", "config.json"):
        content = read_json(folder / file)
        name = content.get("tokenizer_class") if isinstance(content, dict) else None
        if name is not None and hasattr(transformers, str(name)) and not _is_tokenizer(name):
            raise InputError(
                f"{folder} has no tokenizer that loads: tokenizer_class {name!r} in its {file} "
                "is not a tokenizer"
            )


def _never_ask() -> None:
    """Make transformers refuse a folder's code at once instead of asking.

    It asks on the terminal whenever a class inside another one is loaded without the settings of
    this module.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def _shown(auto_map: Any) -> str:
    """Return the first entry of an `auto_map`."""
    if isinstance(auto_map, dict):
        return ": ".join(map(str, next(iter(auto_map.items()))))[:120]
    return str(auto_map)[:120]


def _version() -> str:
    import transformers

    return str(transformers.__version__)
