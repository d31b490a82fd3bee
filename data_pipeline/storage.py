"""Bytes of a folder on the network: whole files and byte ranges through fsspec, with every failure named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from data_pipeline.retry import RetryPolicy, TransientError, retry
from trainer.errors import UserError
from trainer.places import remote_scheme

Result = TypeVar("Result")

_CONNECT_S, _READ_S, _REQUEST_S = 10, 30, 120
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gs"}
_CREDENTIALS = {
    "s3": "the AWS variables, ~/.aws or an instance role",
    "gs": "`gcloud auth application-default login` or a service account",
}
_BUSY = (408, 425, 429)
_RANGE_BEHIND_THE_END = 416
_GONE = (404, 410)
# What tells one content of a file from the next, in the words of each library, the surest first.
_VERSIONS = ("ETag", "etag", "generation", "Last-Modified")
# Failures that no waiting mends, by the names of their classes, which no one library exports for all schemes.
_LASTING = re.compile("Credential|ParamValidation|ProfileNotFound|InvalidURL|Certificate|NoRegion|RefreshError")


class MissingFile(UserError):
    """A file, a folder or a bucket that the source says it has not."""


@dataclass(frozen=True)
class FileState:
    """A file's `size` in bytes; `version` is another when it was written to, and empty where the source tells none."""

    size: int
    version: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> FileState:
        """From what fsspec says of a file; raises TransientError where that is not its size."""
        if info["size"] is None:
            raise TransientError("the server does not tell the file's size")
        return cls(int(info["size"]), next((str(info[name]) for name in _VERSIONS if info.get(name)), ""))


class RemoteFolder:
    """Reads files below a URL; any thread may call it.

    A try that fails in a way that may pass is made again as `policy` says. Raises SourceAway when that does not help,
    MissingFile, and UserError for a refused access, a missing extra and a server that ignores byte ranges.
    """

    def __init__(self, url: str, *, policy: RetryPolicy) -> None:
        try:
            scheme = remote_scheme(url)
        except ValueError as error:
            raise UserError(str(error)) from error
        if scheme is None:
            raise ValueError(f"{url} is a local path")
        self.url = url.rstrip("/")
        self._scheme = scheme
        self._policy = policy
        self._files = _file_system(scheme)

    def url_of(self, name: str) -> str:
        """The URL of a file of the folder."""
        return f"{self.url}/{name}"

    def read(self, name: str, *, parse: Callable[[bytes], Result]) -> Result:
        """A whole file, which should be small, as `parse` gives it back; for its errors see `unless_repeated`."""
        url, parse = self.url_of(name), unless_repeated(parse)
        return retry(
            lambda: parse(self._try(url, lambda: bytes(self._files.cat_file(url)))), what=url, policy=self._policy
        )

    def read_range(self, name: str, *, start: int, end: int, parse: Callable[[bytes], Result]) -> Result:
        """Bytes `start` to `end` of a file as `parse` gives them back; fewer where the file itself ends earlier.

        A body that broke off is fetched again; for the errors of `parse` see `unless_repeated`.
        """
        url, parse = self.url_of(name), unless_repeated(parse)

        def attempt() -> Result:
            content = self._try(url, lambda: bytes(self._files.cat_file(url, start=start, end=end)))
            if len(content) > end - start:
                raise UserError(
                    f"{url}: the server sent {len(content)} bytes where {end - start} were asked for: it ignores byte "
                    "ranges; serve the files by a server that has them (most do), or copy them to a local folder"
                )
            if len(content) < end - start and self._state(url).size >= end:
                raise TransientError(f"the body broke off after {len(content)} of {end - start} bytes")
            return parse(content)

        return retry(attempt, what=url, policy=self._policy)

    def state(self, name: str) -> FileState:
        """Size and version of a file."""
        url = self.url_of(name)
        return retry(lambda: self._state(url), what=url, policy=self._policy)

    def find(self, folder: str) -> dict[str, FileState]:
        """Every file below a folder of this one, by its name here, sorted; only s3:// and gs:// list their files."""
        url = self.url_of(folder).rstrip("/")
        top = len(self.url.partition("://")[2]) + 1

        def attempt() -> dict[str, FileState]:
            # Not glob, nor find with a depth: these leave out, without a word, what they fail to list.
            found = self._try(url, lambda: self._files.find(url, detail=True))
            return {path[top:]: FileState.of(info) for path, info in sorted(found.items()) if info["type"] == "file"}

        return retry(attempt, what=url, policy=self._policy)

    def _state(self, url: str) -> FileState:
        info = self._try(url, lambda: self._files.info(url))
        if info["type"] != "file":
            raise MissingFile(f"{url} is a folder, where a file is expected; check the address")
        return FileState.of(info)

    def _try(self, url: str, request: Callable[[], Result]) -> Result:
        try:
            return request()
        except FileNotFoundError as error:
            # Over HTTP, fsspec calls every failure to learn a file's size a missing file.
            if error.__cause__ is None or self._scheme in ("s3", "gs") or _status(error.__cause__) in _GONE:
                raise MissingFile(f"{url} does not exist; check the address, or copy the files there again") from error
            raise self._failure(url, error.__cause__) from error
        except Exception as error:
            if _status(error) == _RANGE_BEHIND_THE_END:
                return b""  # type: ignore[return-value]
            raise self._failure(url, error) from error

    def _failure(self, url: str, error: BaseException) -> UserError | TransientError:
        """What an error of a library means."""
        status = _status(error)
        if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
            return UserError(
                f"{url}: access was refused ({_short(error)}); credentials are taken from "
                f"{_CREDENTIALS.get(self._scheme, 'nowhere for ' + self._scheme)}"
            )
        if _is_lasting(error, status):
            return UserError(f"{url} cannot be read: {_short(error)}; check the address")
        return TransientError(_short(error))


def unless_repeated(parse: Callable[[bytes], Result]) -> Callable[[bytes], Result]:
    """`parse`, whose UserError counts once two fetches agree on the bytes; before that it is a TransientError.

    What a network does to a body is then never taken for damage of the source.
    """
    seen: set[bytes] = set()

    def parse_fetched(content: bytes) -> Result:
        try:
            return parse(content)
        except UserError as error:
            digest = hashlib.sha256(content).digest()
            if digest in seen:
                raise
            seen.add(digest)
            raise TransientError(str(error)) from error

    return parse_fetched


def _file_system(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **_settings(scheme))
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs a package that is not installed ({error}); run pip install "
            f"'bertline[{_EXTRAS[scheme]}]'"
        ) from error
    except Exception as error:
        raise UserError(f"{scheme}:// cannot be used: {_short(error)}") from error


def _settings(scheme: str) -> dict[str, Any]:
    """Time limits in each library's words: a request that hangs is a try that failed."""
    if scheme == "s3":
        limits = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": limits}
    if scheme == "gs":
        return {"timeout": _REQUEST_S}
    import aiohttp

    limit = aiohttp.ClientTimeout(total=_REQUEST_S, sock_connect=_CONNECT_S, sock_read=_READ_S)
    # A body compressed on the way would make byte ranges those of another file.
    return {"client_kwargs": {"timeout": limit, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}}


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of any of the libraries, None where there is none."""
    for name in ("status", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status
    # s3fs turns what the S3 library says into errors of the operating system. Other causes speak of the connection.
    response = getattr(error.__cause__ or error, "response", None)
    if isinstance(response, dict):
        return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return None


def _is_lasting(error: BaseException, status: int | None) -> bool:
    if status is not None:
        return 400 <= status < 500 and status not in _BUSY
    return isinstance(error, ValueError) or _LASTING.search(type(error).__name__) is not None


def _short(error: BaseException) -> str:
    """One line of an error, with its class where the text alone says nothing."""
    status = getattr(error, "status", None)
    text = f"HTTP status {status}" if isinstance(status, int) else " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
