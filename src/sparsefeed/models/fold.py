"""The fold: a version whose overlays became whole files, with the same answers (docs/contracts/delta.md).

Deltas leave what they changed beside bases that stay; a fold writes both as one. It makes a version as a delta does,
and one that is a function of its parent alone: folded elsewhere it has the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sparsefeed import __version__
from sparsefeed.errors import BundleError, IdError
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.models.bundle import Bundle, Manifest, is_older_code, open_version, publish_version, verify, versions
from sparsefeed.models.links import link
from sparsefeed.models.store.store import ParameterStore, write_index
from sparsefeed.progress import Progress, silent

__all__ = ["fold", "latest_fold"]

_LAYOUT = 1  # raised where the same parent gives a version of other files
_REWRITTEN = frozenset({"bundle.json", "tables", "ids", "snapshot", "MODEL_CARD.md", "SHA256SUMS", "READY"})


def fold(root: Path, parent: str, progress: Progress = silent) -> str:
    """Make the version of a version's content in whole files; return its id. `current` is not touched.

    It has the same rows by the same ids, the same members and posts, and the next sequence; deltas go on from it. Done
    again it is the same version; one without overlays is whole, and its own. The parent is read and verified first.

    Args:
        root: of the bundles.
        parent: id of the version.
        progress: told of the files.

    Raises:
        BundleError: the parent is not here or altered, was made by a newer program, or has its next version already;
            or the disk is full. Nothing is written.
    """
    version = open_version(root, parent)
    if not _overlays(version):
        return version.id
    new_id = _id(version)
    others = [open_version(root, id) for id in versions(root)]
    if any(one.id == new_id for one in others):
        return new_id
    for one in others:
        if (one.manifest.parent, one.manifest.sequence) == (version.id, version.manifest.sequence + 1):
            raise BundleError(
                f'{version.path}: has its next version already, "{one.id}"; fold that one, or remove versions/{one.id}'
            )
    if is_older_code(__version__, version.manifest.code_version):
        raise BundleError(
            f"{version.path}: was made by {version.manifest.code_version}, this is {__version__}; fold it with that "
            "version or a later one"
        )
    verify(version.path, progress)
    publish_version(root, new_id, lambda folder: _build(version, new_id, folder, progress), progress, version.path)
    return new_id


def latest_fold(chosen: Bundle, among: Sequence[Bundle]) -> Bundle:
    """The last of the versions that were folded one from the other, beginning with this one; it may be itself."""
    same = [one for one in among if one.manifest.step == chosen.manifest.step]
    while found := [
        one
        for one in same
        if (one.manifest.parent, one.manifest.parent_digest, one.manifest.trained_days)
        == (chosen.id, chosen.digest, chosen.manifest.trained_days)
    ]:
        chosen = found[0]
    return chosen


def _overlays(version: Bundle) -> list[str]:
    """What a version has overlays of."""
    tables = [table.name for table in ParameterStore.open(version.tables).tables if len(table.overlay_rows)]
    maps = [path.name for path in (version.path / "ids").iterdir() if len(_open(path).overlay)]
    return [*tables, *maps, *(["snapshot"] if Snapshot.load(version.snapshot).overlay else [])]


def _open(folder: Path) -> IdMap:
    try:
        return IdMap.load(folder)
    except IdError as error:
        raise BundleError(str(error)) from error


def _id(version: Bundle) -> str:
    """The beginning of the parent's id and a digest of all that decides the files."""
    digest = hashlib.sha256(f"fold {version.digest} {__version__} {_LAYOUT}".encode()).hexdigest()
    return f"{version.id.rpartition('-')[0] or version.id:.111}-{digest[:8]}"


def _build(parent: Bundle, new_id: str, folder: Path, progress: Progress) -> None:
    for path in parent.path.iterdir():
        if path.name not in _REWRITTEN:
            link(path, folder / path.name)
    store = ParameterStore.open(parent.tables)
    parts = len(store.tables) + len(list((parent.path / "ids").iterdir())) + 1
    (folder / "tables").mkdir()
    for done, table in enumerate(store.tables):
        progress(done, parts, f"folding table {table.name}")
        table.fold(folder / "tables")
    write_index(folder / "tables", {table.name: table.rows for table in store.tables})
    for done, path in enumerate(sorted((parent.path / "ids").iterdir()), len(store.tables)):
        progress(done, parts, f"folding ids {path.name}")
        id_map = _open(path)
        if len(id_map.overlay):
            id_map.merged().save(folder / "ids" / path.name)
        else:
            link(path, folder / "ids" / path.name)
    progress(parts - 1, parts, "folding the snapshot")
    known = Snapshot.load(parent.snapshot)
    if known.overlay:
        known.save(folder / "snapshot")
    else:
        link(parent.snapshot, folder / "snapshot")
    if (card := parent.path / "MODEL_CARD.md").exists():
        told = f"{card.read_text('utf-8')}\nFolded as bundle {new_id}: the same model in whole files.\n"
        (folder / card.name).write_text(told, "utf-8")
    manifest = parent.manifest.model_copy(
        update={
            "id": new_id,
            "code_version": __version__,
            "parent": parent.id,
            "sequence": parent.manifest.sequence + 1,
            "parent_digest": parent.digest,
        }
    )
    Manifest(**manifest.model_dump()).save(folder)
