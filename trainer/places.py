"""Which places data may lie in: local paths, and the network schemes that are read. Everything else is refused."""

from __future__ import annotations

import re

REMOTE_SCHEMES = ("http", "https", "s3", "gs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_REMOTE_URL = re.compile(r"[a-z0-9]+://[^\s/?#@:]+(:\d+)?(/[^\s?#]*)?")


def remote_scheme(place: str) -> str | None:
    """The scheme of a place that is read over the network, None for a local path.

    Raises ValueError for every scheme outside the list, `pipe:` first of all, and for a URL with a query, a fragment
    or a password, which recipes and logs would spread.
    """
    found = _SCHEME.match(place)
    if found is None:
        return None
    scheme = found[1].lower()
    if scheme not in REMOTE_SCHEMES:
        hint = "write the path itself" if scheme == "file" else "write ./ before a local path that holds a colon"
        raise ValueError(
            f"{place} has the scheme {scheme!r}, which is not read; data lie at a local path or under "
            f"{', '.join(f'{known}://' for known in REMOTE_SCHEMES)} ({hint})"
        )
    if not _REMOTE_URL.fullmatch(scheme + place[len(scheme) :]):
        # The place itself is not repeated here: what is wrong with it may be a password.
        raise ValueError(
            f"a {scheme} place must read {scheme}://HOST/PATH or {scheme}://BUCKET/PATH, without ?, #, spaces and "
            "user names; credentials belong where the provider's own tools look for them"
        )
    return scheme
