"""Data sets to the Hugging Face hub, uploaded by huggingface_hub, with a card.

LeRobot's folders of version 3 are uploaded as they are; others are converted into one, which the viewers of the hub and
of LeRobot read, unless they are to stay as they are. The data come first, then the card, then LeRobot's tag of the
version. A card of ours that describes other data is removed with the first commit. huggingface_hub does not send again
what has arrived, so the same command continues a broken upload.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gtp_vision.core.errors import GtpVisionError, causes
from gtp_vision.core.files import data_files, require_space
from gtp_vision.datasets import located
from gtp_vision.datasets.card import MARK, README, SHEET, card, licence_of, write_sheet
from gtp_vision.datasets.differences import differences
from gtp_vision.datasets.download.sources import repository_name
from gtp_vision.datasets.download.transfer import shown
from gtp_vision.datasets.formats import FORMATS, convert, detect, lerobot_meta, tables
from gtp_vision.datasets.inspection import inspect
from gtp_vision.datasets.rate import known_rate
from gtp_vision.datasets.store import Store

_LEROBOT, _VERSION = "lerobot", "v3.0"
_OF_LEROBOT = ("data/*", "meta/*", "videos/*")  # `*` includes folders
_LEFT_OUT = (README, SHEET, "checksums.json")  # those of the card, which come last, and of `data download`
_LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"


def push(
    path: Path,
    name: str,
    *,
    licence: str | None = None,
    is_private: bool = False,
    message: str | None = None,
    as_is: bool = False,
    overwrite: bool = False,
    env: str | None = None,
    features: Mapping[str, str] | None = None,
    fps: float | None = None,
) -> list[str]:
    """Upload a data set to the repository OWNER/NAME of the hub, and return lines on what was done.

    Args:
        path: of any known format.
        name: of the repository, which is made if it does not exist.
        licence: the hub's identifier of a licence, for the card; None keeps that of our card before.
        is_private: a new repository is private, and one that exists must be.
        message: of the commits.
        as_is: upload the files as they are, whatever their format.
        overwrite: write a card in place of a README.md that is not ours, in the folder or the repository.
        env: as of `open_store`, for a conversion.
        features: as of `open_store`, for a conversion.
        fps: as of `convert`, for a conversion.

    Raises:
        GtpVisionError: the data cannot be read, have faults or cannot be converted; the name, the token, the licence or
            the rights do not fit; the hub cannot be reached.
    """
    _, short = repository_name(name)
    path = located(path)
    kind = detect(path, features)
    is_whole = as_is or (kind == _LEROBOT and _version(path) == _VERSION)
    if is_whole and (env or features or fps):
        raise GtpVisionError(f"{path} is uploaded as it is, so --env, --features and --fps change nothing")
    with _connected(name):
        _check_token()
    found, store = inspect(path, env, features)
    if found["problems"]:
        more = f" ({len(found['problems']) - 1} more: see gtp-vision data inspect)" if found["problems"][1:] else ""
        raise GtpVisionError(f"{path} is not uploaded: {found['problems'][0]}{more}")
    with tempfile.TemporaryDirectory(prefix="gtp-vision-push-") as temporary:
        folder, lines = Path(temporary) / short, list[str]()
        if not is_whole:
            lines = _converted(path, store, folder, env, features, fps)
            kind, (found, store) = _LEROBOT, inspect(folder)
        elif path.is_dir():
            folder = path
        else:
            folder.mkdir()
            for file in (path, *([path.with_suffix(".json")] if kind == "maniskill" else [])):
                (folder / file.name).symlink_to(file.resolve())
        files, sheet = _files(folder, path if is_whole and path.is_file() else folder), Path(temporary) / SHEET
        has_sheet = write_sheet(sheet, store)
        with _connected(name):
            before = _page_before(name, is_private, Path(temporary))
        own = (folder / README).read_text("utf-8", "replace") if (folder / README).is_file() else None
        page = next((text for text in (own, before) if text is not None and MARK not in text and not overwrite), None)
        if page is not None and licence:
            place = folder / README if page is own else f"the README.md of {name}"
            raise GtpVisionError(
                f"--licence changes nothing, because {place} is not by gtp-vision and is kept: write 'license: "
                f"{licence}' into its header, or give --overwrite, which replaces it"
            )
        licence = licence or licence_of(own or "") or licence_of(before or "")
        is_lerobot = kind == _LEROBOT
        ours = card(
            name,
            store,
            found,
            licence=licence,
            rate=lerobot_meta.read_info(folder)["fps"] if is_lerobot else known_rate(store.attributes),
            features=_features(folder) if is_lerobot else None,
            file="" if folder == path or not is_whole else path.name,
            has_sheet=has_sheet,
        )
        tag = _version(folder) if is_lerobot else ""
        with _connected(name):
            _upload(name, folder, files, page or ours, before, sheet if has_sheet else None, tag, message)
        size = sum((folder / file).stat().st_size for file in files)
    lines.append(f"{_address(name)}: {len(files)} files, {size / 1e6:.1f} MB{f', tag {tag}' if tag else ''}")
    if page is not None:
        place = f"{folder / README} is its page" if page is own else "its README.md, not by gtp-vision, is kept"
        lines.append(f"{place}; --overwrite replaces it by a card of this data set")
    elif not licence:
        lines.append(f"the card states no licence; --licence ID adds one of {_LICENCES}")
    return lines


def _converted(
    path: Path, store: Store, folder: Path, env: str | None, features: Mapping[str, str] | None, fps: float | None
) -> list[str]:
    """Write a data set as a LeRobot folder, and return what differs, as `data convert` prints it."""
    advice = "set TMPDIR to a folder on another disk"
    require_space(folder.parent, store.nbytes(), f"converting {path.name}", advice)
    after = convert(path, folder, _LEROBOT, env, features, fps=fps)
    if fps is not None:
        store.attributes = dict(store.attributes) | {"fps": fps}
    notes = FORMATS[_LEROBOT].notes
    lines = [*(notes(store) if notes else ()), *differences(store, after)]
    return [f"{path} as LeRobot {_VERSION}: {after.episodes} episodes, {len(after)} frames", *(f"  {x}" for x in lines)]


def _version(folder: Path) -> str:
    """Return LeRobot's version of a folder, as its tags are written."""
    return "v" + str(lerobot_meta.read_info(folder)["codebase_version"]).removeprefix("v")


def _features(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the key and the names of dimensions of what is read of a LeRobot folder."""
    info = lerobot_meta.read_info(folder)
    features, _ = lerobot_meta.read_features(info, folder)
    return {
        name: {"key": each.key, "names": info["features"][each.key].get("names")} for name, each in features.items()
    }


def _files(folder: Path, data: Path) -> list[str]:
    """Return the files to upload, below the folder, none of which leads out of it."""
    if data.is_file():
        return sorted(path.name for path in folder.iterdir())
    names = [str(path.relative_to(folder)) for path in data_files(folder, "**/*") if path.is_file()]
    return sorted(str(tables.inside(folder, name).relative_to(folder)) for name in names if name not in _LEFT_OUT)


def _address(name: str) -> str:
    from huggingface_hub import constants

    return f"{shown(constants.ENDPOINT)}/datasets/{name}"


def _check_token() -> None:
    """Refuse a session without network or token; the hub's own reasons are raised as they are."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise GtpVisionError("HF_HUB_OFFLINE is set, so nothing is uploaded to the hub; unset it")
    if not get_token():
        raise GtpVisionError(
            f"uploading to {shown(constants.ENDPOINT)} needs a token with write access: run 'hf auth login', or set "
            f"HF_TOKEN"
        )
    HfApi().whoami()


def _page_before(name: str, is_private: bool, folder: Path) -> str | None:
    """Make the repository if it does not exist, and return its README.md; None if it has none."""
    from huggingface_hub import HfApi, errors

    api = HfApi()
    api.create_repo(name, repo_type="dataset", private=is_private or None, exist_ok=True)
    if is_private and not api.dataset_info(name).private:
        raise GtpVisionError(
            f"{_address(name)} exists and is public, so --private does not fit; make it private in its settings, or "
            f"choose another name"
        )
    with suppress(errors.EntryNotFoundError):
        place = api.hf_hub_download(name, README, repo_type="dataset", local_dir=folder / "before")
        return Path(place).read_text("utf-8", "replace")
    return None


def _upload(
    name: str,
    folder: Path,
    files: list[str],
    page: str,
    before: str | None,
    sheet: Path | None,
    tag: str,
    message: str | None,
) -> None:
    """Upload the files, then the page with its picture, then move the tag."""
    from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, errors

    DatasetCard(page).validate()  # before hours of uploading
    api, message = HfApi(), message or "Upload with gtp-vision"
    is_outdated = before is not None and MARK in before and before != page
    removed = [*(_OF_LEROBOT if tag else ()), *([README] if is_outdated else ()), *([] if sheet else [SHEET])]
    here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    api.upload_folder(
        repo_id=name,
        repo_type="dataset",
        folder_path=folder,
        ignore_patterns=[".*", "*/.*", *map(glob.escape, sorted(here - set(files)))],
        delete_patterns=removed,  # except those that are uploaded
        commit_message=message,
    )
    last = {README: page.encode()} if page != before else {}
    last |= {SHEET: sheet.read_bytes()} if sheet else {}
    operations = [CommitOperationAdd(path_in_repo=place, path_or_fileobj=content) for place, content in last.items()]
    if operations:
        api.create_commit(name, operations, commit_message=f"{message}: card", repo_type="dataset")
    if tag:
        with suppress(errors.RevisionNotFoundError):
            api.delete_tag(name, tag=tag, repo_type="dataset")
        api.create_tag(name, tag=tag, repo_type="dataset")


@contextmanager
def _connected(name: str) -> Iterator[None]:
    """Turn what huggingface_hub and its transports raise, which differs by version, into one sentence."""
    try:
        yield
    except GtpVisionError:
        raise
    except Exception as error:
        raise GtpVisionError(_reason(name, error)) from error


def _reason(name: str, error: BaseException) -> str:
    chain = causes(error)
    codes = [getattr(getattr(cause, "response", None), "status_code", None) for cause in chain]
    code = next((code for code in codes if code), None)
    said = dict.fromkeys(str(cause) for cause in (error, chain[codes.index(code) if code else -1]))
    words = " ".join("; ".join(said).split())[:400] or type(error).__name__
    if code == 401:
        return f"{_address(name)}: the hub refuses the token ({words}); run 'hf auth login' or set HF_TOKEN"
    if code == 403:
        owner = name.partition("/")[0]
        return (
            f"{_address(name)} may not be written with this token ({words}); use a token with write access, of {owner} "
            f"or of a member with that role"
        )
    if code == 400 or isinstance(error, ValueError):
        is_licence = "license" in words
        advice = f"give --licence an identifier of {_LICENCES}" if is_licence else "correct what it names"
        return f"{_address(name)}: the hub refuses the upload ({words}); {advice}"
    return f"{name} could not be uploaded to {_address(name)} ({words}); run the same command again to continue"
