"""Transport: bundles and deltas to and from a folder or an object store, by fsspec.

A store has no rename, so a version is there when its READY is, which is sent last and asked for first. What arrives is
written beside, verified whole against its digests, and renamed: half of one is never seen on either side.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsefeed.errors import BundleError, ReleaseError, ToolError
from sparsefeed.lock import only_writer
from sparsefeed.models.bundle import open_version, verify
from sparsefeed.models.delta import verify_delta
from sparsefeed.progress import Progress, silent

__all__ = ["list_versions", "pull", "pull_delta", "push", "push_delta"]

_SUMS, _READY = "SHA256SUMS", "READY"


def push(root: Path, bundle: str | None, store: str, progress: Progress = silent) -> str:
    """Copy a version to `STORE/versions/<id>`; one that is there with the same content is left as it is.

    Args:
        root: of the bundles.
        bundle: the version's id; None takes `current`.
        store: a folder or URL of any fsspec driver.
        progress: told of each file.

    Returns:
        The version's id.

    Raises:
        BundleError: it is not whole, or the store has another content of that id.
        ReleaseError: the store refuses or does not answer; what is there has no READY.
    """
    version = open_version(root, bundle)
    verify(version.path, progress)
    _send(version.path, f"{store.rstrip('/')}/versions/{version.id}", progress)
    return version.id


def push_delta(delta: Path, store: str, progress: Progress = silent) -> str:
    """Copy a delta to `STORE/deltas/<id of the version it makes>`; errors and return as of `push`."""
    id = verify_delta(delta, progress).manifest.id
    _send(delta, f"{store.rstrip('/')}/deltas/{id}", progress)
    return id


def pull(store: str, bundle: str, root: Path, progress: Progress = silent) -> Path:
    """Copy a version from a store; it is there when it was found whole, `current` stays.

    Raises:
        BundleError: it is not whole, or this root has another content of that id.
        ReleaseError: the store has none of that id that is READY, or does not answer.
    """
    return _fetch(f"{store.rstrip('/')}/versions/{bundle}", root / "versions" / bundle, progress)


def pull_delta(store: str, id: str, out: Path, progress: Progress = silent) -> Path:
    """Copy the delta that makes a version into a new folder; errors as of `pull`."""
    return _fetch(f"{store.rstrip('/')}/deltas/{id}", out, progress)


def list_versions(store: str) -> list[str]:
    """Ids of a store's READY versions, sorted."""
    with _asking(store):
        driver, folder = _driver(f"{store.rstrip('/')}/versions")
        if not driver.exists(folder):
            return []
        names = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in driver.ls(folder, detail=False)]
        return sorted(name for name in names if driver.exists(f"{folder}/{name}/{_READY}"))


def _send(source: Path, target: str, progress: Progress) -> None:
    names = [line[66:] for line in (source / _SUMS).read_text("utf-8").splitlines()]
    ready = (source / _READY).read_text("utf-8")
    with _asking(target):
        driver, folder = _driver(target)
        if driver.exists(f"{folder}/{_READY}"):
            found = driver.cat_file(f"{folder}/{_READY}").decode("utf-8", "replace")
            if found != ready:
                raise BundleError(f"{target}: is there with other content; a version never changes, choose a new id")
            return
        for i, name in enumerate([*names, _SUMS, _READY]):
            driver.makedirs(f"{folder}/{name}".rsplit("/", 1)[0], exist_ok=True)
            driver.put_file(str(source / name), f"{folder}/{name}")
            progress(i, len(names) + 2, f"sent {name}")


def _fetch(source: str, target: Path, progress: Progress) -> Path:
    partial = target.with_name(f".{target.name}.pulled")
    target.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(target.parent):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with _asking(source):
                driver, folder = _driver(source)
                if not driver.exists(f"{folder}/{_READY}"):
                    raise ReleaseError(f"{source}: has no READY, so it is not there whole; push it, or wait")
                ready = driver.cat_file(f"{folder}/{_READY}").decode("utf-8", "replace")
                if (target / _READY).exists() and (target / _READY).read_text("utf-8") == ready:
                    verify(target, progress)
                    return target
                if target.exists():
                    raise BundleError(f"{target}: exists with other content than {source}; remove the wrong one")
                partial.mkdir()
                driver.get_file(f"{folder}/{_SUMS}", str(partial / _SUMS))
                names = [_within(partial, line[66:]) for line in (partial / _SUMS).read_text("utf-8").splitlines()]
                for i, name in enumerate([*names, _READY]):
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    driver.get_file(f"{folder}/{name}", str(partial / name))
                    progress(i, len(names) + 1, f"fetched {name}")
            verify(partial, progress)
            for path in (*partial.rglob("*"), partial):
                _sync(path)
            partial.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _within(folder: Path, name: str) -> str:
    """A name of the list; BundleError when it would be written elsewhere."""
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise BundleError(f"{folder / _SUMS}: names {name!r}; a bundle's files are inside its folder")
    return name


def _driver(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        driver, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ToolError(f"{url}: no driver reads it here ({error}); install it") from error
    driver.invalidate_cache()  # of what earlier listings said
    return driver, str(path).rstrip("/")


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Drivers raise errors of many libraries."""
    try:
        yield
    except (BundleError, ReleaseError, ToolError):
        raise
    except Exception as error:
        raise ReleaseError(
            f"{url}: the store refuses or does not answer ({type(error).__name__}: {error}); look at the address, and "
            "at the credentials in fsspec's own configuration"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
