"""The command that writes a folder to start from."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from wind.errors import ConfigError
from wind.machine.terminal import say

STARTER = Path(__file__).parents[1] / "starter"
RECIPE = "mine.yaml"
FILES = (RECIPE, "prompts.jsonl", "my_rewards.py")
PLACEHOLDER = "/path/to/model"
DEMO_POLICY = Path("models", "base")

commands = typer.Typer()


@commands.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="folder to write to; made if it is missing")],
    policy: Annotated[
        str | None,
        typer.Option(help="local Hugging Face folder or Hub id; by default the demo's model"),
    ] = None,
) -> None:
    """Write a recipe, two prompts, and a reward to start from."""
    _require_free(folder)
    path = policy or _demo_policy()
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        text = (STARTER / name).read_text(encoding="utf-8")
        if name == RECIPE and path is not None:
            text = _with_policy(text, path)
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(text)
    say(*(folder / name for name in FILES))
    say(f"next: {'' if path else f'set policy.path in {folder / RECIPE}, then '}run")
    say(f"  cd {shlex.quote(str(folder))}", f"  wind plan {RECIPE}", f"  wind run {RECIPE}")


def _require_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder")
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise ConfigError(f"{folder} already has {', '.join(taken)}: name another folder")


def _demo_policy() -> str | None:
    """Find the demo's policy.

    It may be here, or in the checkout that `wind` was installed from.
    """
    for root in (Path.cwd(), STARTER.parents[1]):
        if (root / DEMO_POLICY / "config.json").is_file():
            return str(root / DEMO_POLICY)
    return None


def _with_policy(recipe: str, path: str) -> str:
    """Return `recipe` with `path` as the policy.

    A folder is written as its full path.
    """
    full = str(Path(path).resolve()) if Path(path).is_dir() else path
    return recipe.replace(PLACEHOLDER, json.dumps(full, ensure_ascii=False))
