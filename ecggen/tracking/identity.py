"""Which store, which pipeline run, which process: everything that tells runs apart."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from pathlib import Path

from ecggen.utils.errors import EcggenError

KEY_TAG = "ecggen.run_key"

#: Schemes of the stores that MLflow itself knows; others come with packages that announce them.
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https")
_OTHERS = ("file", "databricks", "databricks-uc", "uc")


class TrackingError(EcggenError):
    """The tracking store cannot be meant as it is named."""


def pipeline_root() -> Path:
    """The main repository, also in queued and temporary experiments; else the folder with dvc.yaml."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the sqlite file that `mlflow ui` finds from the repository root.

    Relative paths are below the root: a queued experiment's own folder does not outlive it. Raises
    TrackingError for what cannot be an address of a store; whether the store is there is not asked.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    root = pipeline_root()
    if not uri:
        return f"sqlite:///{(root / 'mlflow.db').as_posix()}"
    scheme, colon, rest = uri.partition(":")
    if uri in _OTHERS:
        return uri
    if not colon or (len(scheme) == 1 and rest[:1] in ("/", "\\")):  # a path, on Windows with its drive
        return (root / uri).as_uri()
    kind = scheme.partition("+")[0].lower()
    if kind in _SERVERS and not re.fullmatch(r"//[^/?#\s]+([/?#]\S*)?", rest):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {shown(uri)!r}: an address with a host is needed, for example "
            "http://127.0.0.1:5000."
        )
    if kind in _DATABASES and not rest.startswith("//"):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {shown(uri)!r}: an address of a database is needed, for example "
            f"sqlite:///{(root / 'mlflow.db').as_posix()}."
        )
    if kind not in (*_DATABASES, *_SERVERS, *_OTHERS) and kind not in _announced():
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {shown(uri)!r}: there is no kind of store {scheme!r}. Known are a path, "
            f"{', '.join((*_SERVERS, *_DATABASES, *_OTHERS))}; or unset it for mlflow.db in the repository."
        )
    if kind == "sqlite" and rest.startswith("///") and not rest.startswith("////"):
        place = rest[3:]
        if place and place != ":memory:" and not place.startswith("file:") and not Path(place).is_absolute():
            return f"{scheme}:///{(root / place).as_posix()}"
    return uri


def shown(uri: str) -> str:
    """An address without the password inside it."""
    return re.sub(r"(//[^/@:\s]*):[^/@\s]*@", r"\1:***@", uri)


def run_key() -> str:
    """What all stages of one pipeline run have in common and no other run has."""
    given = os.environ.get("ECGGEN_RUN_KEY")
    if given:
        return re.sub(r"[^\w.:-]", "_", given)
    names = [os.environ.get(name, "") for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")]
    parts = [*names, git("rev-parse", "HEAD"), socket.gethostname(), pipeline_process() or own_process()]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def pipeline_process() -> str:
    """Identity ("pid:start") of the dvc process above this one; empty where there is none."""
    import psutil

    try:
        above = [p for p in psutil.Process().parents() if is_dvc(p.cmdline())]
    except psutil.Error:
        above = []
    return process_identity(above[0].pid) if above else ""


def own_process() -> str:
    """Identity of this process."""
    return process_identity(os.getpid())


def process_identity(pid: int) -> str:
    """pid:start of a running process, which no later process of that number shares; empty if it is gone."""
    try:  # clock ticks since boot; the wall-clock time derived from them can jump by a second
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}:{fields[19]}" if fields[0] not in "ZX" else ""
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    import psutil

    try:
        return f"{pid}:{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def is_running(identity: str) -> bool:
    """Whether the process of this identity runs on this machine."""
    pid = identity.partition(":")[0]
    return pid.isdigit() and process_identity(int(pid)) == identity


def is_dvc(command: list[str]) -> bool:
    """True for `dvc ...`, `python .../dvc ...` and `python -m dvc ...`, Python's own switches between."""
    first, rest = command[:1], command[1:]
    while rest and rest[0] in ("-u", "-B", "-E", "-I", "-O", "-OO", "-P", "-q", "-s", "-S"):
        rest = rest[1:]
    names = [Path(part).name.lower().removesuffix(".exe") for part in [*first, *rest[:2]]]
    return "dvc" in names[:2] or names[1:] == ["-m", "dvc"]


def git(*args: str) -> str:
    """What git says, stripped; empty where it fails."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _announced() -> set[str]:
    """Schemes of stores that installed packages bring."""
    from importlib.metadata import entry_points

    return {entry.name.lower() for entry in entry_points(group="mlflow.tracking_store")}
