"""StoredFile: a parquet file as it was when it was listed, on this machine or behind a URL of any fsspec driver.

The one way to open a file of the logs. A local file is memory-mapped, and fsspec is not even imported for it. Of a
remote one only those byte ranges travel that the reader asks for. Credentials, endpoints and the like are fsspec's own
configuration, of every process that reads.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from sparsefeed.errors import BadFileError, DataError, ToolError

__all__ = ["StoredFile", "find_files", "is_remote", "root_of", "side_by_side"]

Item = TypeVar("Item")
Result = TypeVar("Result")
_AT_ONCE = 16  # questions to a store by one process
# What drivers call the mark of a content: the first that is there.
_MARKS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "Last-Modified", "modified")
_LOCAL = ("file://", "local://")


@dataclass(frozen=True)
class StoredFile:
    """One file; picklable.

    Attributes:
        url: its path on this machine, or its URL.
        size: in bytes; None: it is not there.
        mark: changes when the content does: the time of change in ns, or what the store has of that kind, if anything.
    """

    url: str
    size: int | None
    mark: str | int | None

    @classmethod
    def at(cls, url: str) -> StoredFile:
        """The file as it is now.

        Raises:
            DataError: the store refuses or does not answer.
        """
        if not is_remote(url):
            try:
                stat = Path(url).stat()
            except OSError:
                return cls(url, None, None)
            return cls(url, stat.st_size, stat.st_mtime_ns)
        with _asking(url):
            driver, path = _driver(url)
            driver.invalidate_cache()  # of what earlier listings said
            try:
                return cls._of(url, driver.info(path))
            except FileNotFoundError as error:
                if not _is_gone(error):
                    raise
        return cls(url, None, None)

    @classmethod
    def _of(cls, url: str, info: dict[str, Any]) -> StoredFile:
        mark = next((str(info[key]).strip('"') for key in _MARKS if info.get(key)), None)
        return cls(url, info.get("size"), mark)

    def __str__(self) -> str:
        return self.url

    def parquet(self, **options: Any) -> pq.ParquetFile:
        """Open it, to be closed by the caller; `options` are ParquetFile's.

        Of a remote file, reading a row group fetches the asked columns' chunks alone, near ones in one request.
        """
        if not is_remote(self.url):
            return pq.ParquetFile(self.url, memory_map=True, **options)
        return pq.ParquetFile(_Ranges(self), pre_buffer=True, **options)

    def footer(self) -> pq.FileMetaData:
        """Its row groups, chunks and schema; of a remote file its end is fetched, 64 KiB at least."""
        if not is_remote(self.url):
            return pq.read_metadata(self.url)
        with self.parquet() as file:
            return file.metadata

    @property
    def identity(self) -> list[int | str | None] | None:
        """Size and mark, as JSON holds them; None: it was not there."""
        return None if self.size is None else [self.size, self.mark]

    def must_be_unchanged(self) -> None:
        """BadFileError where it is gone or another than it was when it was listed."""
        now = self.at(self.url)
        if now.size is None:
            raise self._bad("is not there any more; run again without it, or write it again")
        if now != self:
            raise self._bad("was changed since the run began; run again when the logs are at rest")

    def _bad(self, cause: str) -> BadFileError:
        return BadFileError(self, cause, self.identity)

    @contextmanager
    def reading(self, trouble: str) -> Iterator[None]:
        """Make a BadFileError of whatever is wrong with the file inside.

        Raises:
            BadFileError: the file is gone, changed, or `trouble`.
            DataError: the store refuses or does not answer; that says nothing of the file.
        """
        try:
            yield
        except DataError:
            self.must_be_unchanged()  # a shorter file is refused the ranges it had
            raise
        except (pa.ArrowException, OSError) as error:
            self.must_be_unchanged()
            raise self._bad(f"{trouble} ({error}); write the file again or take it out") from error


def is_remote(url: str) -> bool:
    """Whether a driver of fsspec must be asked; chained URLs (`simplecache::s3://...`) are such."""
    return "://" in url or "::" in url


def root_of(where: Path | str) -> str:
    """A folder as its files' URLs begin: a path of this machine, or a URL; without a last slash."""
    text = str(where)
    for prefix in _LOCAL:
        text = text.removeprefix(prefix)
    return text.rstrip("/") if is_remote(text) else str(Path(text))


def find_files(folder: str, pattern: str) -> list[StoredFile]:
    """Files that fit `pattern` ("day=*/*.parquet"), by name; a remote folder is listed once. None where there is none.

    Raises:
        DataError: the store refuses or does not answer.
        ToolError: the package that reads such URLs is not installed.
    """
    if not is_remote(folder):
        return [StoredFile.at(str(path)) for path in sorted(Path(folder).glob(pattern))]
    with _asking(folder):
        driver, root = _driver(folder)
        driver.invalidate_cache()
        root = root.rstrip("/")
        try:
            listed = driver.find(root, detail=True)
            if not listed:
                driver.ls(root)  # raises what find hides
        except FileNotFoundError as error:
            if not _is_gone(error):
                raise
            return []
    found = []
    for path, info in listed.items():
        name = path.removeprefix(root).lstrip("/")
        if name.count("/") == pattern.count("/") and fnmatchcase(unquote(name), pattern):  # some servers escape "="
            found.append(StoredFile._of(f"{folder}/{name}", info))
    found.sort(key=lambda file: file.url.split("/"))
    return list(side_by_side(_complete, found))


def _complete(file: StoredFile) -> StoredFile:
    """Ask for the file itself where a listing did not say all."""
    return StoredFile.at(file.url) if file.size is None or file.mark is None else file


def side_by_side(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order of calls that wait for a store or a disk, some at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(call, items)


def _driver(url: str) -> tuple[Any, str]:
    """The driver, one per process and kind of store, and what it calls the place."""
    try:
        import fsspec

        driver, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # which package is missing is what the ImportError says
        raise ToolError(f"{url}: no driver reads it here ({error}); install it, on every machine that reads") from error
    return driver, str(path)


def _is_gone(error: FileNotFoundError) -> bool:
    """Whether a store said so; fsspec's driver of HTTP calls every failure a missing file, a lost connection too."""
    cause = error.__cause__
    if cause is None or isinstance(cause, FileNotFoundError):
        return True
    return getattr(cause, "status", None) in (404, 410) or hasattr(cause, "response")  # botocore's and Azure's have one


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Drivers raise errors of many libraries: a DataError of all but "not found"."""
    try:
        yield
    except (DataError, ToolError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _is_gone(error):
            raise
        said = f"{type(error).__name__}: {error.__cause__ or error}"
        raise DataError(
            f"{url}: the store refuses or does not answer ({said}); look at the address, and at the credentials in "
            "fsspec's own configuration"
        ) from error


class _Ranges(io.RawIOBase):
    """A remote file, each read one request for that range."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file, self._at = file, 0
        self._driver, self._path = _driver(file.url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size or 0}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes; OSError where the store has fewer than the listing said."""
        end = self._file.size or 0
        if size >= 0:
            end = min(end, self._at + size)
        if end <= self._at:
            return b""
        with _asking(self._file.url):
            data = self._driver.cat_file(self._path, start=self._at, end=end)
        if len(data) != end - self._at:
            raise OSError(f"bytes {self._at} to {end} asked for, {len(data)} bytes came")
        self._at = end
        return bytes(data)
