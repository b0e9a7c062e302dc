"""Finds the stored images in what operators returned, and checks each by its sidecar: anybody may have written both."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.contract import OUTPUT_FORMATS, SIZES
from airflow_provider_qwenimage.rules.batch_rows import RowStatus
from airflow_provider_qwenimage.rules.choices import MOST_CANDIDATES, MOST_PROMPT_CHARACTERS, Candidate
from airflow_provider_qwenimage.rules.recorded_paths import check_recorded_path
from airflow_provider_qwenimage.storage.files import read_bytes, read_json
from airflow_provider_qwenimage.storage.image_pairs import exists
from airflow_provider_qwenimage.storage.paths import path_of
from airflow_provider_qwenimage.storage.sidecars import SUFFIXES, if_valid, is_line, is_number, is_usable
from airflow_provider_qwenimage.text.messages import shorten, shown
from airflow_provider_qwenimage.text.storable import storable_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

# So many sidecars are read, and written, at the same time.
AT_ONCE = 16
_ALLOWED = (
    "what the operators of this package return: a dict with paths, the dict of a batch, or a list of these. Set "
    "output_path in the task that draws"
)
# About 100,000 rows.
_MOST_MANIFEST_BYTES = 100 * 1024 * 1024
_MANIFEST = re.compile(r"manifest(?:-i[0-9]+)?(?:-[0-9]+)?\.jsonl", re.ASCII)
_MOST_ENTRIES = 100_000
_MOST_DEPTH = 5
_NO_LISTS = (str, bytes, bytearray, memoryview)
_LONGEST_LABEL = 200


@dataclass(frozen=True)
class _Listed:
    """A stored image as a task returned it.

    Attributes:
        where: Where in the argument, for messages: ``images[2]``.
        result: The dict that has it.
        position: Its position among the paths.
        path: Its path.
    """

    where: str
    result: Mapping[str, Any]
    position: int
    path: str


def find_candidates(images: object) -> list[Candidate]:
    """Return the candidates among which to choose, in their order, each file once.

    Args:
        images: The argument `images`, rendered.

    Raises:
        ValueError: If it is not what operators return, has no stored image or too many, or one that is not an image as
            its sidecar describes it.
        OSError: If storage cannot be read.
    """
    opened: dict[tuple[str, str], tuple[_Listed, ObjectStoragePath]] = {}
    for listed in _listed_in(_from_text(images)):
        path = _open(listed)
        # A local file has a path and a URL, and one in S3 has s3:// and s3a://.
        opened.setdefault((str(path.fs.protocol), str(path.path)), (listed, path))
        if len(opened) > MOST_CANDIDATES:
            raise ValueError(
                f"images has more than {MOST_CANDIDATES:,} stored images; it must have at most so many. Choose in "
                "several tasks, each among a part of them."
            )
    if not opened:
        raise ValueError(
            "images has no stored image; it must have at least one. Check that the upstream tasks drew some."
        )
    with ThreadPoolExecutor(min(AT_ONCE, len(opened))) as pool:
        return list(pool.map(lambda each: _candidate(*each), opened.values()))


def _from_text(images: object) -> object:
    """Return the list or object in a rendered template; any other value as it is."""
    if not isinstance(images, str) or not images.strip().startswith(("[", "{")):
        return images
    try:
        return json.loads(images)
    except (ValueError, RecursionError):
        pass
    try:
        # As Python prints it, and Jinja with it.
        return ast.literal_eval(images.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return images


def _listed_in(images: object) -> Iterator[_Listed]:
    entries = [0]

    def walk(value: object, where: str, depth: int) -> Iterator[_Listed]:
        entries[0] += 1
        if entries[0] > _MOST_ENTRIES:
            raise ValueError(f"images has more than {_MOST_ENTRIES:,} entries; it must have at most so many.")
        if value is None:
            return
        if isinstance(value, Mapping):
            yield from _in_result(value, where)
        elif isinstance(value, Sequence) and not isinstance(value, _NO_LISTS) and depth < _MOST_DEPTH:
            for number, each in enumerate(value):
                yield from walk(each, f"{where}[{number}]", depth + 1)
        else:
            raise ValueError(f"{where} is {shown(value)}; it must be {_ALLOWED}.")

    yield from walk(images, "images", 0)


def _in_result(result: Mapping[str, Any], where: str) -> Iterator[_Listed]:
    if "manifest" in result and "paths" not in result:
        for number, row in _rows_of(result["manifest"], where):
            yield from _in_row(row, f"row {number} of the manifest of {where}")
        return
    status = result.get("status", RowStatus.SUCCESS)
    if status != RowStatus.SUCCESS:
        return
    paths = result.get("paths")
    if not paths:
        raise ValueError(f"{where} is {shown(dict(result))}, which has no stored image; it must be {_ALLOWED}.")
    yield from _in_row(result, where)


def _in_row(row: Mapping[str, Any], where: str) -> Iterator[_Listed]:
    if row.get("status", RowStatus.SUCCESS) != RowStatus.SUCCESS:
        return
    paths = row.get("paths")
    if not isinstance(paths, list | tuple):
        raise ValueError(f"{where} has the paths {shown(paths)}; they must be a list of the paths of images.")
    for position, path in enumerate(paths):
        if not isinstance(path, str):
            raise ValueError(f"{where} has the path {shown(path)}; it must be the path or URL of an image.")
        yield _Listed(where, row, position, path)


def _rows_of(manifest: object, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    file = _opened(manifest, f"{where} has the manifest")
    if not _MANIFEST.fullmatch(file.name):
        raise ValueError(
            f"{where} has the manifest {shown(manifest)}; its name must be that of the manifest of a batch."
        )
    content = read_bytes(file, _MOST_MANIFEST_BYTES)
    if content is None:
        raise ValueError(f"{where} has the manifest {shown(manifest)}, which no longer exists. Run the batch again.")
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {file} is not a row of a batch; run the batch again to write the file.")
        yield number, row


def _open(listed: _Listed) -> ObjectStoragePath:
    path = _opened(listed.path, f"{listed.where} has the path")
    if path.suffix not in SUFFIXES.values():
        raise ValueError(
            f"{listed.where} has the path {shown(listed.path)}; it must be that of an image (.jpg, .png or .webp)."
        )
    return path


def _opened(path: object, what: str) -> ObjectStoragePath:
    try:
        checked = check_recorded_path(path)
    except ValueError as error:
        raise ValueError(
            f"{what} {shown(path)}, which {error}; it must be one that a task of this package recorded."
        ) from error
    try:
        return path_of(checked)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{what} {shown(path)}, which Airflow cannot open: {error}. Install the provider of that storage on "
            "the workers of this task."
        ) from error


def sidecar_of(image: ObjectStoragePath) -> ObjectStoragePath:
    """Return the name of an image's sidecar."""
    return image.parent / f"{image.stem}.json"


def problem_with(sidecar: Mapping[str, Any] | None, image: ObjectStoragePath, task_id: object) -> str | None:
    """Return why a sidecar is not that of an image, as the end of a sentence about the image; None if it is.

    Args:
        sidecar: The content of the sidecar; None if there is none.
        image: The file of the image.
        task_id: The API's id of the image task that has to have drawn it.
    """
    if sidecar is None:
        return "has no sidecar"
    if not is_usable(sidecar) or sidecar.get("image") != image.name:
        return "has a sidecar that is not one of this package"
    if sidecar["task_id"] != task_id:
        return f"is now the image of another image task, {shown(sidecar['task_id'])}"
    return None


def _candidate(listed: _Listed, image: ObjectStoragePath) -> Candidate:
    sidecar = read_json(sidecar_of(image))
    result = listed.result
    expected = result.get("task_id") or (sidecar or {}).get("task_id")
    problem = problem_with(sidecar, image, expected)
    if problem is None and not exists(image):
        problem = "is no longer stored"
    if problem is not None or sidecar is None:
        raise ValueError(
            f"{listed.where} has the path {shown(listed.path)}, which {problem}; it must be an image that a task of "
            "this package stored. Run the task that drew it again."
        )
    request = sidecar.get("request")
    fields: Mapping[str, Any] = request if isinstance(request, Mapping) else {}
    urls = result.get("image_urls")
    url = urls[listed.position] if isinstance(urls, list | tuple) and len(urls) > listed.position else None
    return Candidate(
        task_id=sidecar["task_id"],
        path=listed.path,
        prompt=_text(fields.get("prompt"), MOST_PROMPT_CHARACTERS),
        seed=if_valid(fields.get("seed"), _is_seed),
        size=if_valid(fields.get("size"), SIZES.__contains__),
        output_format=if_valid(fields.get("output_format"), OUTPUT_FORMATS.__contains__),
        label=_text(result.get("label"), _LONGEST_LABEL),
        image_url=if_valid(url, is_line) or sidecar["image_url"],
        consumed_credits=if_valid(result.get("consumed_credits"), is_number),
        reused=result.get("reused") is True,
    )


def _text(value: object, most: int) -> str | None:
    return storable_text(shorten(value, most - 1)) if isinstance(value, str) else None


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 2**63
