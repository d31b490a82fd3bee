from __future__ import annotations

import pytest

from trainer.places import remote_scheme


@pytest.mark.parametrize("place", ["shards", "/data/shards", "./a:b", "../x", "data/s3:/x"])
def test_a_path_is_local(place: str) -> None:
    assert remote_scheme(place) is None


@pytest.mark.parametrize(
    ("place", "scheme"),
    [
        ("http://host/x", "http"),
        ("https://host:8443/a/b/", "https"),
        ("s3://bucket/x", "s3"),
        ("gs://bucket", "gs"),
        ("S3://bucket/x", "s3"),
    ],
)
def test_four_schemes_are_read_over_the_network(place: str, scheme: str) -> None:
    assert remote_scheme(place) == scheme


@pytest.mark.parametrize(
    "place",
    [
        "pipe:cat /etc/passwd",
        "file:///data/shards",
        "ftp://host/x",
        "simplecache::s3://bucket/x",
        "zip://a.zip::http://host/x",
        "memory://x",
        "gopen:x",
        "PIPE:ls",
        "hf://datasets/x",
        "local:/x",
    ],
)
def test_every_other_scheme_is_refused_by_name(place: str) -> None:
    scheme = place.partition(":")[0].lower()
    with pytest.raises(
        ValueError, match=rf"has the scheme '{scheme}', which is not read; .*http://, https://, s3://, gs"
    ):
        remote_scheme(place)


@pytest.mark.parametrize(
    "place",
    ["http://user:secret@host/x", "https://host/x?token=secret", "http://host/x#secret", "s3:bucket/x", "http:///x"],
)
def test_a_url_that_holds_a_secret_or_no_host_is_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(ValueError, match="must read") as refused:
        remote_scheme(place)
    assert "secret" not in str(refused.value)
