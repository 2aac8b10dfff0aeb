"""Release: the routes of one server, the log of what was decided, and the server itself when it runs.

Its folder holds server.json (where the server and its models are), control.key (serving.key), routes.json and its
spare, release.jsonl, figures/ and shadow.jsonl. All but the figures is written by one command at a time.
"""

from __future__ import annotations

import getpass
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sparsefeed.errors import BundleError, ReleaseError, ServeError
from sparsefeed.etl.spec import Frozen
from sparsefeed.lock import only_writer
from sparsefeed.models.bundle import read_json
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.log import ReleaseLog
from sparsefeed.workflows.release.routing.route_file import RouteFile
from sparsefeed.workflows.release.routing.routes import Routes
from sparsefeed.workflows.serving.control import ModelControl
from sparsefeed.workflows.serving.key import control_key
from sparsefeed.workflows.serving.request import ROUTER

__all__ = ["Release", "ServerPlace", "decided_now", "registered"]

_REGISTER = "released_by"


class ServerPlace(Frozen):
    """`server.json`: where a server and its models are."""

    grpc_url: str
    repository: str
    bundles: str  # root of the bundles that its models read


@dataclass(frozen=True)
class Release:
    """One server's releases; what it serves is `routes`.

    Attributes:
        folder: holds the route file and the log.
        place: where the server is, running or not.
        file: the route file.
        log: of decisions.
        key: of the server's model control; the folder has it as `control.key`.
        control: of the server's models.
    """

    folder: Path
    place: ServerPlace
    file: RouteFile
    log: ReleaseLog
    key: str = field(repr=False)
    control: ModelControl

    @classmethod
    def create(cls, folder: Path, place: ServerPlace, bundle: str) -> Release:
        """Make the folder of a server that begins with a bundle, or open the one that is there.

        An existing one keeps its routes; the place becomes the given one.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with only_writer(folder):
            path = folder / "server.json"
            beside = path.with_name(".server.json.partial")
            if not path.exists() or read_json(ServerPlace, path) != place:
                beside.write_text(place.model_dump_json(indent=1) + "\n", "utf-8")
                beside.replace(path)
            release = cls._at(folder, place)
            if not release.file.path.exists():
                decision = decided_now("begin", "the server's first start", revision=0, stable=bundle)
                release.file.create(Routes(0, bundle, decision=decision))
        _register(Path(place.bundles), folder)
        return release

    @classmethod
    def open(cls, where: Path | str) -> Release:
        """Open the releases of a server.

        Args:
            where: its release folder, whether it runs or not; or host:port of its gRPC, when it runs.

        Raises:
            ReleaseError: nothing is there, or the server has no router, or its release folder is not on this machine.
        """
        folder = Path(where)
        if not (folder / "server.json").exists():
            try:
                folder = Path(ModelControl(str(where), timeout_s=10).parameters(ROUTER)["release"])
            except (ServeError, KeyError, ValueError) as error:
                raise ReleaseError(
                    f"{where}: neither a release folder nor a server with a router ({error}); give the folder that "
                    "`sparsefeed serve` made, or the host:port of its gRPC"
                ) from error
            if not (folder / "server.json").exists():
                raise ReleaseError(f"{where}: its release folder, {folder}, is not on this machine; run this there")
        try:
            return cls._at(folder.resolve(), read_json(ServerPlace, folder / "server.json"))
        except BundleError as error:
            raise ReleaseError(str(error)) from error

    @classmethod
    def _at(cls, folder: Path, place: ServerPlace) -> Release:
        routes, log = RouteFile(folder / "routes.json"), ReleaseLog(folder / "release.jsonl")
        try:
            key = control_key(folder / "control.key")
        except (OSError, ServeError) as error:
            raise ReleaseError(f"{folder}: the server's models cannot be controlled: {error}") from error
        return cls(folder, place, routes, log, key, ModelControl(place.grpc_url, key))

    @property
    def name(self) -> str:
        """What messages call the server."""
        return self.place.grpc_url

    @property
    def repository(self) -> Path:
        """The server's model repository."""
        return Path(self.place.repository)

    @property
    def routes(self) -> Routes:
        """As they are now."""
        return self.file.read()

    def ready(self) -> frozenset[str] | None:
        """Ids of the bundles that the server has ready; None when it does not run."""
        try:
            return frozenset(self.control.ready())
        except ServeError:
            return None

    @contextmanager
    def alone(self) -> Iterator[str]:
        """Be the only command that changes this server; yield what an earlier one that died had decided, if any.

        Its line, which the route file holds, is appended to the log first.
        """
        with only_writer(self.folder):
            decision = self.routes.decision
            if decision.get("revision", -1) > self.log.last_revision:
                self._append(decision)
                yield str(decision.get("action", ""))
            else:
                yield ""

    def decide(
        self,
        action: str,
        why: str,
        change: Callable[[Routes], Routes],
        facts: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> Routes:
        """Replace the routes and log why, inside `alone`.

        The change counts from the moment the routes are in place; a log that cannot be written then is told of as a
        warning, and its line is appended by the next command.

        Raises:
            ReleaseError: the routes cannot be replaced; they are as they were.
        """
        now = self.routes
        routes = change(now)
        routed = {"stable": routes.stable, "previous": list(routes.previous)}
        routed |= {name: part and vars(part) for name in ("canary", "shadow") if (part := getattr(routes, name))}
        decision = decided_now(action, why, revision=routes.revision, **routed, **(facts or {}))
        routes = routes.with_changes(revision=routes.revision, decision=decision)
        self.file.replace(routes, progress)
        self._append(decision)
        progress(2, 2, "decision logged")
        return routes

    def note(self, action: str, why: str, facts: Mapping[str, Any] | None = None) -> None:
        """Log a decision that leaves the routes as they are, inside `alone`."""
        self._append(decided_now(action, why, **(facts or {})))

    def _append(self, decision: Mapping[str, Any]) -> None:
        try:
            self.log.append(decision)
        except ReleaseError as error:
            warnings.warn(str(error), UserWarning, stacklevel=3)


def decided_now(action: str, why: str, **facts: Any) -> dict[str, Any]:
    """One line of the log."""
    when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return {"action": action, "when": when, "who": _who(), "why": why, **facts}


def registered(root: Path) -> list[Path]:
    """Release folders of the servers that read bundles of a root, running or not."""
    path = root / _REGISTER
    return [Path(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _register(root: Path, folder: Path) -> None:
    with only_writer(root):
        folders = registered(root)
        if folder not in folders:
            beside = root / f".{_REGISTER}.partial"
            beside.write_text("".join(f"{one}\n" for one in [*folders, folder] if one.exists()), "utf-8")
            beside.replace(root / _REGISTER)


def _who() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
