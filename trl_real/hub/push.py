"""Upload of a subset to the Hub: its rows as one config of a dataset repository, its recipe in the card."""

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import yaml
from datasets import Dataset, DatasetDict, DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from trl_real.errors import TrlRealError
from trl_real.hub.card import check_record, public_record, update_card
from trl_real.hub.facts import CardFacts, as_pushed, authors, columns_of, label_sources
from trl_real.selection.record import SelectionRecord


logger = logging.getLogger(__name__)

RECORDS_FOLDER = "selection_records"
CONFLICTS = (409, 412)
ATTEMPTS = 8
PAUSE = 0.1  # maximum seconds before the second attempt; doubled before each further one
_CONFIG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_RESERVED = ("data", RECORDS_FOLDER)
_HINTS = {
    401: "Type: hf auth login",
    403: "Push to a repository of yours, or use a token with write access to this one. Type: hf auth login",
    404: "Check the name, and that you are signed in. Type: hf auth whoami",
    409: "Someone else pushed at the same time",
    412: "Someone else pushed at the same time",
    429: "The Hub limits the number of requests. Wait a few minutes",
}


def push_subset(
    dataset: Dataset | DatasetDict,
    repo_id: str,
    *,
    record: SelectionRecord | dict | None = None,
    config_name: str | None = None,
    split: str = "train",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    **facts: Any,
) -> str:
    """
    Push a subset as one config of a dataset repository, with its recipe in the card.

    Two commits: the rows (with the metadata of `datasets`), then our section of the card together with
    `selection_records/CONFIG.json`. Each is all or nothing: after a failure the repository has its old content or the
    new rows, the local dataset is unchanged, and a second push completes the work. Other configs, the user's text in
    the card and other files do not change.

    Args:
        dataset (`Dataset` or `DatasetDict`): Rows to push. A `DatasetDict` replaces all splits of its config. Of
            labelled rows, `response_a`, `response_b` and an empty `skipped` are left out; `chosen_model` and
            `rejected_model` are added if `models` says who wrote the responses.
        repo_id (`str`): Repository, `user/name` or `name` for your own; created if it does not exist.
        record (`SelectionRecord` or `dict`): Record of the selection: `selector.record` after `select`.
        config_name (`str`, *optional*): Name of the config. Defaults to strategy and budget, such as `easy-0.25`.
        split (`str`, *optional*, defaults to `"train"`): Split of a `Dataset`; ignored for a `DatasetDict`.
        private (`bool`, *optional*): Whether a new repository is private, as in `push_to_hub`; `True` also refuses an
            existing public repository.
        token (`str`, *optional*): Access token. Defaults to that of `hf auth login`.
        revision (`str`, *optional*): Branch to push to, created if needed. Defaults to `main`.
        commit_message (`str`, *optional*): Commit message. Defaults to one with the name of the config.
        **facts:
            What the card says of the data (`trl_real.hub.facts.CardFacts`): `title`, `license`, `language`,
            `currency` of the judge's prices, and `labels`, the report of `annotate`. What is not given stays as the
            card has it.

    Returns:
        URL of the repository (of the branch, if `revision` is given).

    Raises:
        TrlRealError: If an argument is invalid, or the Hub cannot be reached or refuses the push.
    """
    _check_rows(dataset)
    dataset, stated = as_pushed(dataset), CardFacts(**facts)
    _check_names(repo_id, split)
    record = _as_record(record)
    config_name = checked_config_name(config_name if config_name is not None else default_config_name(record))
    api, message = HfApi(token=token), commit_message or f"Push {config_name} with trl-real"
    with _one_line(repo_id, "The local rows are unchanged: correct this and push again."):
        repo_id = _open_repo(api, repo_id, private)
        target: dict[str, Any] = {"repo_id": repo_id, "config_name": config_name, "revision": revision}
        _again_on_conflict(lambda: _push_rows(api, dataset, split, commit_message=message, **target))
    with _one_line(repo_id, "The rows are pushed, their card may not be: correct this and push again."):
        _again_on_conflict(lambda: _push_card(api, record, dataset, stated, message=message, **target))
    url = f"{api.endpoint}/datasets/{repo_id}"
    return f"{url}/tree/{quote(revision, safe='')}" if revision else url


def default_config_name(record: SelectionRecord) -> str:
    """Return strategy and budget as a config name: `easy-0.25`, `hard-500`, `random-all`."""
    strategy = re.sub(r"[^A-Za-z0-9._]+", "-", record.strategy).strip("._-") or "selection"
    budget = round(record.budget, 6) if isinstance(record.budget, float) else record.budget or "all"
    return f"{strategy[-64:].lstrip('._-')}-{budget}"


def _check_rows(dataset: Dataset | DatasetDict) -> None:
    if not isinstance(dataset, Dataset | DatasetDict):
        raise TrlRealError(
            f"push_subset takes a Dataset or a DatasetDict, found {type(dataset).__name__}. "
            "Create one: datasets.Dataset.from_list(rows) or datasets.Dataset.from_generator(...)"
        )
    splits = list(dataset.values()) if isinstance(dataset, DatasetDict) else [dataset]
    if not any(len(rows) for rows in splits):
        raise TrlRealError("The subset has 0 rows, so there is nothing to push. Select with a larger budget.")


def _check_names(repo_id: str, split: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise TrlRealError(
            f"Invalid repository {repo_id!r}. Give 'user/name' or 'name', with letters, digits, '-', '_' and '.'"
        ) from error
    if not re.fullmatch(r"\w+(\.\w+)*", split):
        raise TrlRealError(f"Invalid split {split!r}. Use letters, digits, '_' and '.', such as split='train'")


def _as_record(record: SelectionRecord | dict | None) -> SelectionRecord:
    if record is None:
        raise TrlRealError(
            "No selection record for the recipe in the card. Give record=selector.record or "
            "record=SelectionRecord.load(folder); to push without a recipe: dataset.push_to_hub(repo_id)"
        )
    if isinstance(record, dict):
        missing = {"strategy", "budget", "seed"} - record.keys()
        if missing:
            raise TrlRealError(
                f"The record has no {sorted(missing)}; it has {sorted(record)}. Give record=selector.record.to_dict()"
            )
        record = SelectionRecord.from_dict(record)
    check_record(record)
    return record


def checked_config_name(name: str) -> str:
    """
    Return the name if it is valid for the Hub, `load_dataset` and the card's markers.

    Raises:
        TrlRealError: If it is not valid.
    """
    if _CONFIG_NAME.fullmatch(name) and name not in _RESERVED:
        return name
    raise TrlRealError(
        f"Invalid config name {name!r}: use 1 to 96 letters, digits, '.', '_' and '-', a letter or digit first, "
        f"and not {' or '.join(map(repr, _RESERVED))}. Give one such as config_name='easy-0.25'"
    )


def _open_repo(api: HfApi, repo_id: str, private: bool | None) -> str:
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    try:
        info = api.repo_info(repo_id, repo_type="dataset")
    except RepositoryNotFoundError:
        return api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if private and not info.private:
        raise TrlRealError(
            f"{repo_id} exists and is public, so private=True would publish the rows. Give another name, or type: "
            f"hf repos settings {repo_id} --repo-type dataset --private"
        )
    return info.id


def _push_rows(api: HfApi, dataset: Dataset | DatasetDict, split: str, **target) -> None:
    if isinstance(dataset, Dataset):
        info = _config_info(api, **target)
        if info is None or not set(info.splits or ()) - {split}:
            dataset = DatasetDict({split: dataset})  # a split alone would keep the features of an earlier push
        elif info.features != dataset.features:
            raise TrlRealError(
                f"Config {target['config_name']!r} of {target['repo_id']} has another split with columns other than "
                f"{sorted(dataset.column_names)}. Push all splits together as a DatasetDict, or give another "
                "config_name."
            )
        else:
            target["split"] = split
    dataset.push_to_hub(token=api.token, **target)


def _config_info(api: HfApi, repo_id: str, config_name: str, revision: str | None, **_: Any) -> DatasetInfo | None:
    """Return what the card says about a config; None if there is no card, or no such config."""
    try:
        readme = hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision, token=api.token)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    return DatasetInfosDict.from_dataset_card_data(DatasetCard.load(readme).data).get(config_name)


def _push_card(
    api: HfApi,
    record: SelectionRecord,
    dataset: Dataset | DatasetDict,
    facts: CardFacts,
    *,
    repo_id: str,
    config_name: str,
    revision: str | None,
    message: str,
) -> None:
    head = api.repo_info(repo_id, repo_type="dataset", revision=revision).sha
    readme = hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=head, token=api.token)
    with open(readme, encoding="utf-8", newline="") as file:
        content = file.read()
    columns = columns_of(dataset)
    tables = [*label_sources(dataset), *facts.label_table(), *authors(dataset)]
    files = {
        "README.md": update_card(
            content, record, config_name, repo_id, columns=columns, tables=tables, facts=facts, revision=revision
        ),
        f"{RECORDS_FOLDER}/{config_name}.json": json.dumps(public_record(record), indent=2, ensure_ascii=False) + "\n",
    }
    api.create_commit(
        repo_id,
        [CommitOperationAdd(path, text.encode()) for path, text in files.items()],
        commit_message=f"{message}: card and record",
        repo_type="dataset",
        revision=revision,
        parent_commit=head,
    )


def _again_on_conflict(step: Callable[[], None]) -> None:
    # datasets' own retry looks for the status on `err.__context__`, where huggingface_hub 2 no longer puts it.
    for attempt in range(ATTEMPTS):
        try:
            return step()
        except HfHubHTTPError as error:
            if attempt + 1 == ATTEMPTS or error.response.status_code not in CONFLICTS:
                raise
            logger.info("Another commit came first; pushing again on top of it.")
            # A random pause, so that two pushers do not collide again; the user's random state must not change.
            time.sleep(random.SystemRandom().uniform(0, PAUSE * 2**attempt))


@contextmanager
def _one_line(repo_id: str, state: str) -> Iterator[None]:
    try:
        yield
    except TrlRealError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
        # A failed upload is a RuntimeError caused by the HTTP error with the reason.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise TrlRealError(f"Could not push to {repo_id}: {_reason(cause)} {state}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not signed in. Type: hf auth login."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Type: unset HF_HUB_OFFLINE."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        message = " ".join((error.server_message or error.response.reason_phrase or "no message").split()).rstrip(".")
        return f"the Hub answered {status}, {message}. {_HINTS.get(status, 'Try again later')}."
    # The query string of upload URLs contains credentials.
    first_line = re.sub(r"\?\S+", "", next(iter(str(error).strip().splitlines()), type(error).__name__)).rstrip(".")
    if isinstance(error, HTTPError):
        return f"the Hub cannot be reached ({first_line}). Check the connection and HF_ENDPOINT."
    return f"{first_line}."
