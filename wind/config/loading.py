"""Load a recipe from YAML and command-line overrides.

A mistake in it becomes one line that says what is wrong.
"""

import difflib
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from wind.config.bandit import BanditConfig
from wind.config.base import Section
from wind.config.checks import ChecksConfig
from wind.config.recipe import DistillConfig
from wind.config.rewards import RewardSection
from wind.config.runs import RunConfig
from wind.errors import ConfigError, shown
from wind.files import NotPlainError, plain_text
from wind.nesting import DEEPEST

# the most values in a recipe, where a few hundred are many
YAML_NODES = 10_000


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> DistillConfig:
    """Load the recipe at `path`, a YAML file, with `overrides`.

    An override is text such as `training.lr=1e-6`. Values of overrides are YAML. Relative paths in
    a recipe are relative to the folder in which the run is started, not to the recipe. Raises
    ConfigError, in one line that names the file and the dotted setting, for the first mistake
    (misspelled keys come before all others), with the number of further ones.
    """
    return _validated(DistillConfig, _read(path), overrides, str(path))


def evaluation_config(
    model: str, path: Path | None = None, overrides: Sequence[str] = ()
) -> DistillConfig:
    """Return the config of an evaluation of `model` alone.

    It is the recipe at `path`, if any, under another run name; without a policy in it, `model` is
    its policy. Overrides are read and errors raised as by `load_config`.
    """
    content = {} if path is None else _read(path)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(model).name).strip("-.")
    content["run"] = f"evaluate-{name}"[:64]
    content.setdefault("policy", {"path": model})
    return _validated(DistillConfig, content, overrides, "--set" if path is None else str(path))


def _read(path: Path | str) -> dict[Any, Any]:
    """Read the settings of the recipe at `path`. Raises ConfigError if it cannot."""
    try:
        content = _yaml(plain_text(Path(path)), str(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist: give the path of a recipe, a YAML file"
        ) from None
    except NotPlainError as error:
        raise ConfigError(f"{error}: give the path of a recipe, a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} must be a mapping of settings such as `run: demo`, not {shown(content)}"
        )
    return content


def bandit_config(overrides: Sequence[str] = (), **settings: Any) -> BanditConfig:
    """Return the config of the contextual-bandit study, with `settings` and then `overrides`.

    Overrides are read and errors raised as by `load_config`.
    """
    return _validated(BanditConfig, settings, overrides, "--set")


def checks_config(recorded: dict[Any, Any], overrides: Sequence[str] = ()) -> ChecksConfig:
    """Return a `recorded` section `checks`, with overrides such as `checks.max_tie_share=0.5`."""
    return _validated(RunConfig, {"run": "checks", "checks": recorded}, overrides, "--set").checks


R = TypeVar("R", bound=RunConfig)


def _validated(config: type[R], content: dict[Any, Any], overrides: Sequence[str], where: str) -> R:
    for override in overrides:
        _override(content, override)
    try:
        return config.model_validate(content)
    except ValidationError as error:
        errors = sorted(
            error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden"
        )
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{where}: {_explained(errors[0], config)}{more}") from error


def alternatives(option: str) -> tuple[str, list[Any]]:
    """Return the setting and the values of `section.key=V1,V2`.

    A value with commas needs brackets or quotes. Raises ConfigError if there is no value, or one is
    listed twice.
    """
    name, equals, text = option.partition("=")
    values = _yaml(f"[{text}]", repr(option)) if equals else []
    if not values or not name.strip():
        raise ConfigError(
            f"{option!r} lists no values: write section.key=V1,V2, "
            "for example training.lr=1e-4,3e-4"
        )
    if len({str(value) for value in values}) < len(values):
        raise ConfigError(f"{option!r} lists a value twice: every value is a run of its own")
    return name.strip(), values


class _TooDeepError(Exception):
    """A YAML text is nested more than `DEEPEST` levels."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses repeated keys and deep nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        levels = int(self.check_event(yaml.CollectionStartEvent))
        self._depth += levels
        if self._depth > DEEPEST:
            raise _TooDeepError
        node = super().compose_node(parent, index)
        self._depth -= levels
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            # Only plain scalars can be settings, and the merge key `<<` may be repeated.
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{_named(key_node.value)} is set twice",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        size, depth = _measured(node)
        if depth > DEEPEST:
            raise _TooDeepError
        if size > YAML_NODES:
            raise ConfigError(
                f"{where} holds more than {YAML_NODES} values once its aliases are put in: "
                "write a smaller one"
            )
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: {error.problem or error.context}") from error
    except _TooDeepError:
        raise ConfigError(
            f"{where} is nested too deeply: no setting lies more than {DEEPEST} levels deep"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _measured(
    node: yaml.Node, known: dict[yaml.Node, tuple[float, int]] | None = None
) -> tuple[float, int]:
    """Return the number of values in `node` and their depth.

    Aliases are expanded. A node that contains itself has infinitely many.
    """
    known = {} if known is None else known
    if not isinstance(node, yaml.CollectionNode):
        return 1, 0
    if node not in known:
        # a node that contains itself is found here while its parts are counted
        known[node] = math.inf, 1
        parts = [
            part for item in node.value for part in (item if isinstance(item, tuple) else (item,))
        ]
        measured = [_measured(part, known) for part in parts]
        known[node] = (
            1 + sum(size for size, _ in measured),
            1 + max((depth for _, depth in measured), default=0),
        )
    return known[node]


def _override(content: dict[Any, Any], override: str) -> None:
    """Set the value of `section.key=value` in `content`, adding missing sections."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"{override!r} is not an override: write section.key=value, "
            "for example training.lr=1e-6"
        )
    section = content
    for depth, part in enumerate(parts[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(
                f"{override!r}: {_named('.'.join(parts[:depth]))} is {shown(section)} "
                "and has no settings of its own"
            )
    section[parts[-1]] = _yaml(text, repr(override))


def _explained(error: ErrorDetails, config: type[RunConfig]) -> str:
    """Return a pydantic error as one line.

    It names the setting, its value, and what is allowed or was meant.
    """
    name, section, members = _setting(error["loc"], config)
    kind, context, given = error["type"], error.get("ctx", {}), shown(error["input"])
    if kind == "extra_forbidden":
        return f"{name} is not a setting; {_meant(name, section, config)}"
    if kind == "missing":
        return f"{name} is required and missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tag = context["discriminator"].strip("'")
        chosen = f"is {context['tag']!r}" if "tag" in context else "is required and missing"
        tags = " or ".join(repr(_tag(member, tag)) for member in members)
        return f"{name}.{tag} {chosen}; it must be {tags}"
    if kind == "value_error":
        return f"{name}: {context['error']}" if name else str(context["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name} is {given}; it must be a mapping of settings"
    if kind == "literal_error":
        return f"{name} is {given}; it must be {context['expected']}"
    message = error["msg"].replace("Input should", "it must").replace("String should", "it must")
    return f"{name} is {given}; {message}"


def _setting(
    location: Sequence[int | str], config: type[Section]
) -> tuple[str, type[Section], list[type[Section]]]:
    """Return the dotted name of pydantic's `location`, its section, and the sections it can hold."""
    names: list[str] = []
    owner: type[Section] = config
    inside: list[type[Section]] = [config]
    is_key = False
    for part in location:
        if is_key:
            # of a mapping of sections, which are what comes next
            is_key = False
            names.append(_named(str(part)))
            continue
        # pydantic names the chosen member of a union by its tag, which is no key of the file
        if len(inside) > 1:
            inside = [
                member
                for member in inside
                if part in {_tag(member, tag) for tag in ("kind", "name")}
            ]
            continue
        if part != "[key]":
            names.append(_named(str(part)))
        if inside:
            owner = inside[0]
            field = owner.model_fields.get(str(part))
            inside = _sections(field.annotation) if field else []
            is_key = bool(inside) and field is not None and get_origin(field.annotation) is dict
    return ".".join(names), owner, inside


def _named(name: str) -> str:
    """Return `name`, quoted if it contains unprintable characters."""
    return name if name.isprintable() else repr(name)


def _sections(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field can hold.

    One, several of a union, or none.
    """
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _tag(section: type[Section], name: str) -> Any:
    """Return the value of the field `name` that selects `section`.

    None if it is not selected by that field in a union.
    """
    field = section.model_fields.get(name)
    return next(iter(get_args(field.annotation)), None) if field else None


def _settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings in `section` and its subsections.

    Those of one kind of reward are left out, as they are seldom what somebody means elsewhere. Those
    of a mapping's sections have no names before a recipe names the sections.
    """
    for name, field in section.model_fields.items():
        yield prefix + name
        for below in (
            _sections(field.annotation) if get_origin(field.annotation) is not dict else ()
        ):
            if not issubclass(below, RewardSection):
                yield from _settings(below, f"{prefix}{name}.")


def _meant(name: str, section: type[Section], config: type[Section]) -> str:
    """Suggest a setting for the unknown `name`, or list all."""
    owner, _, leaf = name.rpartition(".")
    leaf = leaf.lower().replace("-", "_")
    words = leaf.split("_")
    prefix = f"{owner}." if owner else ""
    here = list(section.model_fields)
    everywhere = {dotted.rpartition(".")[2]: dotted for dotted in _settings(config)}
    guesses = [
        *(prefix + guess for guess in difflib.get_close_matches(leaf, here, 1, 0.7)),
        # learning_rate: lr
        *(prefix + guess for guess in here if guess == "".join(word[:1] for word in words)),
        # batch_size: batch_prompts
        *(prefix + guess for guess in here if set(words) & set(guess.split("_"))),
        *(everywhere[leaf] for _ in range(leaf in everywhere)),
        *(everywhere[guess] for guess in difflib.get_close_matches(leaf, everywhere, 1, 0.7)),
    ]
    for guess in guesses:
        # another section of the same union may have a setting of this very name
        if guess != name:
            return f"did you mean {guess}?"
    return f"the settings {f'of {owner}' if owner else 'there'} are {', '.join(here)}"
