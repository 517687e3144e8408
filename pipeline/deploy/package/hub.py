"""A package to a model hub. Nothing else in this repository sends anything anywhere."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, MissingDependencyError, OssicleError

_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def token() -> str:
    """Return the hub's token from the environment.

    Raises:
        ConfigError: there is none.
    """
    for name in TOKEN_VARIABLES:
        if os.environ.get(name):
            return os.environ[name]
    raise ConfigError(
        "pushing needs a token of the hub, with the right to write",
        expected=" or ".join(TOKEN_VARIABLES) + " in the environment", got="neither",
        run="HF_TOKEN=... ossicle package RUN --push OWNER/NAME",
    )  # fmt: skip


def check_repository(name: str) -> None:
    """Refuse what is no ``OWNER/NAME``.

    Raises:
        ConfigError: it is none.
        MissingDependencyError: huggingface_hub is not installed.
    """
    if not _REPOSITORY.match(name):
        raise ConfigError("no name of a repository", expected="OWNER/NAME", got=name)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingDependencyError("pushing needs huggingface_hub", run="pip install 'ossicle[hub]'")


def push(folder: Path, repository: str, *, message: str, private: bool) -> str:
    """Upload every file of ``folder`` in one commit; return the commit's address.

    Args:
        folder: the package.
        repository: ``OWNER/NAME``; made if it is not there.
        message: of the commit.
        private: whether a repository made now is private; one that is there stays as it is.

    Raises:
        ConfigError: no token, or no such name.
        MissingDependencyError: huggingface_hub is not installed.
        OssicleError: the hub refuses, or cannot be reached.
    """
    check_repository(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi(token=token())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        made = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, OSError) as error:
        raise OssicleError(
            f"the hub did not take the package for {repository}",
            expected="a token with the right to write there, and a connection",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
        ) from error
    return str(made.commit_url)
