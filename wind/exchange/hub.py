"""Pushing an exported folder to the Hugging Face Hub.

A push is one commit, to a private repository unless it is to be public.
"""

import re
from pathlib import Path
from typing import Literal

from wind.errors import ConfigError, StageError, first_line

HUB_URL = re.compile(r"^hub:(?P<id>[\w.-]+/[\w.-]+)$")


def repository(url: str) -> str:
    """Return the repository id in hub:ORG/NAME; raise ConfigError for anything else."""
    match = HUB_URL.fullmatch(url)
    if match is None:
        raise ConfigError(f"{url!r} is not a Hub repository: write hub:ORG/NAME")
    return match["id"]


def require_token() -> None:
    """Raise ConfigError if pushing is impossible: offline, or without a token."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise ConfigError("the Hub is set offline: unset HF_HUB_OFFLINE to push")
    if not get_token():
        raise ConfigError("there is no Hub token: log in with `hf auth login`, or set HF_TOKEN")


def push(
    folder: Path, repository: str, kind: Literal["model", "dataset"], *, public: bool, message: str
) -> str:
    """Commit the files of `folder`, and return the URL of the commit.

    The repository is created if it does not exist. Raises ConfigError if the Hub refuses, or if the
    repository is public and `public` is false; StageError if the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    hub = HfApi()
    try:
        hub.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        if not public and not hub.repo_info(repository, repo_type=kind).private:
            raise ConfigError(
                f"{repository} already exists and is public: give --public, or another name"
            )
        return hub.upload_folder(
            repo_id=repository, folder_path=folder, repo_type=kind, commit_message=message
        ).commit_url
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise ConfigError(f"the Hub refuses {repository}: {first_line(error)}") from error
    # HTTPError comes from whichever HTTP client the library is built on.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise StageError(
            f"the Hub cannot be reached: {first_line(error)}; push again later"
        ) from error
