"""Uploads a finished folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from jlora.errors import JloraError


def check_push(repo: str, private: bool, endpoint: str | None = None) -> str:
    """Checks before a run that its result can be pushed: creates the repository if it does not exist.

    Args:
      repo: `owner/name`; without `owner/`, the token's own user.
      private: whether a new repository is private; an existing one is not changed.
      endpoint: the hub's address; None means `HF_ENDPOINT` or huggingface.co.

    Returns:
      The full `owner/name`.

    Raises:
      JloraError: there is no token, the name is not possible, the token may not write, or the hub does not answer.
    """
    if get_token() is None:
        raise JloraError(
            "hub.push: expected a Hugging Face token, found none; "
            "run `hf auth login`, set HF_TOKEN, or set hub.push: false"
        )
    try:
        return HfApi(endpoint=endpoint).create_repo(repo, private=private, exist_ok=True).repo_id
    except HFValidationError as error:
        raise JloraError(f"hub.repo: expected owner/name, found {repo!r}: {error}") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise JloraError(f"hub.repo: cannot write to {repo}: {_reason(error)}") from None


def push(folder: str | Path, repo: str, private: bool, endpoint: str | None = None) -> str:
    """Uploads everything in `folder` as one commit and returns the commit's address.

    Args:
      folder: not changed, even if the upload fails.
      repo, private, endpoint: the repository `owner/name`, whether it is private if it does not exist yet, and the
        hub's address (None means `HF_ENDPOINT` or huggingface.co).

    Raises:
      JloraError: an error of `check_push`, which is called first; or the upload failed, with the command that uploads
        the folder by hand.
    """
    repo_id = check_push(repo, private, endpoint)
    try:
        commit = HfApi(endpoint=endpoint).upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload from jlora"
        )
    except (HTTPError, OfflineModeIsEnabled) as error:
        message = f"hub.push: upload to {repo_id} failed: {_reason(error)}\nlater: hf upload {repo_id} {folder}"
        raise JloraError(message) from None
    return commit.commit_url


def _reason(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.server_message:
        return f"{error.response.status_code}: {error.server_message}"
    return str(error)
