"""Images on a real S3 server: what is stored is never replaced without consent, and an image takes few requests."""

from __future__ import annotations

import pytest

from airflow_provider_qwenimage.exceptions import QwenImageImageError
from airflow_provider_qwenimage.publish.contact_sheets import ContactSheets
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.storage.images import Obstacle, StoredFile, StoredImages, find_images, verify_and_store
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.s3_server import Bucket, FailedPut
from tests.test_files_in_the_way import REQUEST, RETOUCHED, picture, snapshot

IDENTITY = ImageIdentity(REQUEST, name="my fox")


def put(bucket: Bucket, content: bytes, image_task_id: str = "n1") -> str | QwenImageImageError:
    folder = open_output_path(f"{bucket.url}/x")
    stored = verify_and_store(content, snapshot(image_task_id), IDENTITY, folder, number=1)
    return stored.path if isinstance(stored, StoredFile) else stored


def test_a_new_image_takes_two_requests_to_look_for_it_and_four_to_store_it(bucket: Bucket) -> None:
    folder = open_output_path(f"{bucket.url}/x")
    before = len(bucket.requests)
    assert find_images(IDENTITY, folder) is None
    assert [method for method, _, _ in bucket.requests[before:]] == ["GET", "GET"]
    before = len(bucket.requests)
    assert put(bucket, picture()) == f"{bucket.url}/x/my fox.png"
    sent = [(method, path.rpartition(".")[2]) for method, path, _ in bucket.requests[before:] if "my fox" in path]
    assert sent == [("PUT", "png"), ("PUT", "json"), ("GET", "json"), ("GET", "png")]
    before = len(bucket.requests)
    assert isinstance(find_images(IDENTITY, folder), StoredImages)
    assert [method for method, _, _ in bucket.requests[before:]] == ["GET", "GET"]
    assert bucket.content_type("x/my fox.png") == "image/png"
    assert bucket.content_type("x/my fox.json") == "application/json"


def test_a_file_in_the_way_stays(bucket: Bucket) -> None:
    bucket.put("x/my fox.png", RETOUCHED)
    folder = open_output_path(f"{bucket.url}/x")
    assert isinstance(find_images(IDENTITY, folder), Obstacle)
    assert put(bucket, picture()) == f"{bucket.url}/x/my fox-n1.png"
    assert bucket.get("x/my fox.png") == RETOUCHED
    assert isinstance(find_images(IDENTITY, folder), StoredImages)


@pytest.mark.parametrize("key", ["png", "json"])
def test_a_lost_answer_to_storing_an_image_or_its_sidecar_makes_no_second_file(bucket: Bucket, key: str) -> None:
    put(bucket, picture())
    bucket.server.client().delete_object(Bucket=bucket.name, Key="x/my fox.png")
    if key == "png":
        bucket.server.client().delete_object(Bucket=bucket.name, Key="x/my fox.json")
    bucket.server.failed_puts.append(FailedPut("500 Internal Server Error", stored=True))
    assert put(bucket, picture()) == f"{bucket.url}/x/my fox.png"
    assert bucket.keys == ["x/my fox.json", "x/my fox.png"]


def test_an_image_that_was_not_requested_is_kept_once(bucket: Bucket) -> None:
    for _ in range(2):
        assert isinstance(put(bucket, picture(output_format="jpeg")), QwenImageImageError)
    assert bucket.keys == ["x/my fox.refused.jpg", "x/my fox.refused.json"]
    assert bucket.content_type("x/my fox.refused.jpg") == "image/jpeg"


def test_a_contact_sheet_is_drawn_from_stored_images_and_is_a_jpeg(bucket: Bucket) -> None:
    path = put(bucket, picture())
    row = {"row": 1, "status": "SUCCESS", "prompt": "A fox", "size": "768*1024", "seed": 7, "paths": [path]}
    made_by = {"dag_id": "foxes", "run_id": "r", "task_id": "draw", "map_index": -1, "max_tries": 0}
    sheets = ContactSheets(open_output_path(f"{bucket.url}/x"), lambda: iter([row]), made_by)
    sheets.check(1)
    assert sheets.put() == [f"{bucket.url}/x/contact-sheet.jpg"]
    assert bucket.content_type("x/contact-sheet.jpg") == "image/jpeg"
    # Again, on top of its own one.
    sheets.check(1)
    assert sheets.put() == [f"{bucket.url}/x/contact-sheet.jpg"]
    bucket.put("x/contact-sheet.jpg", picture(output_format="jpeg"))
    with pytest.raises(ValueError, match="is not the contact sheet of a batch"):
        sheets.check(1)
