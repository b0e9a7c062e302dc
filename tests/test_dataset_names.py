"""Folders and files as Airflow's assets and OpenLineage name them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from airflow.providers.common.compat.sdk import Asset
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.rules.dataset_names import asset_uri, openlineage_name


@pytest.mark.parametrize(
    ("location", "uri", "name"),
    [
        ("/data/images", "file:///data/images", ("file", "/data/images")),
        ("//data//images/", "file:///data/images", ("file", "/data/images")),
        ("file:///data/images/", "file:///data/images", ("file", "/data/images")),
        ("file:/data/images", "file:///data/images", ("file", "/data/images")),
        ("file://conn@/data", "file:///data", ("file", "/data")),
        ("local:///data", "file:///data", ("file", "/data")),
        ("/", "file:///", ("file", "/")),
        ("/a b/狐#1?/50%", "file:///a%20b/%E7%8B%90%231%3F/50%25", ("file", "/a b/狐#1?/50%")),
        ("/dt=2026-01-01/a:b", "file:///dt=2026-01-01/a:b", ("file", "/dt=2026-01-01/a:b")),
        ("s3://bucket/images", "s3://bucket/images", ("s3://bucket", "images")),
        (" S3://aws_default@bucket/images/ ", "s3://bucket/images", ("s3://bucket", "images")),
        ("s3a://aws@bucket/a", "s3a://bucket/a", ("s3://bucket", "a")),
        ("s3://bucket", "s3://bucket/", ("s3://bucket", "/")),
        ("s3://aws@bucket/a@b/c", "s3://bucket/a@b/c", ("s3://bucket", "a@b/c")),
        ("gcs://google@bucket/a", "gcs://bucket/a", ("gs://bucket", "a")),
        ("abfs://azure@container/a", "abfs://container/a", ("abfs://container", "a")),
        ("hdfs://conn@host:9000/a", "hdfs://host:9000/a", ("hdfs://host:9000", "a")),
        ("sftp://conn@[::1]:22/a", "sftp://%5B::1%5D:22/a", ("sftp://[::1]:22", "a")),
        ("https://user:secret@host/a.csv?sig=1", "https://host/a.csv", ("https://host", "a.csv")),
    ],
)
def test_the_names_of_a_location(location: str, uri: str, name: tuple[str, str]) -> None:
    assert asset_uri(location) == uri
    assert openlineage_name(location) == name


@pytest.mark.parametrize("location", ["s3://key:se/cret@bucket/a", "hdfs://conn@host:port/a", "s3://a:b:9/c"])
def test_what_may_be_a_password_is_in_no_name(location: str) -> None:
    for name in (asset_uri, openlineage_name):
        with pytest.raises(ValueError, match="as if a password began there") as error:
            name(location)
        assert "cret" not in str(error.value)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_airflow_keeps_the_uri_of_any_folder_as_it_is(name: str) -> None:
    location = f"/data/x{name}x"
    uri = asset_uri(location)
    assert Asset(uri=uri).uri == uri
    assert unquote(urlsplit(uri).path) == openlineage_name(location)[1]
    in_bucket = asset_uri(f"s3://aws_default@bucket/x{name}x")
    assert Asset(uri=in_bucket).uri == in_bucket
    assert "aws_default" not in in_bucket
