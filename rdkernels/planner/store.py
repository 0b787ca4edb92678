"""Measured plans on disk: one JSON file a device, shared by the processes of a user."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: of two processes that write at once, the later one wins
    fcntl = None  # type: ignore[assignment]

from .candidates import NAMES

Times = dict[str, float]  # candidate -> median seconds

_LOCK_SECONDS = 1.0  # a process that holds the lock for longer is taken for dead or stopped
_known: dict[pathlib.Path, dict[str, Times]] = {}
_warned: set[pathlib.Path] = set()


def folder() -> pathlib.Path:
    """Where the plans are: `RDKERNELS_CACHE`, else `rdkernels` in the user's cache folder."""
    given = os.environ.get("RDKERNELS_CACHE")
    if given:
        return pathlib.Path(given)
    home = pathlib.Path(os.path.expanduser("~"))  # where there is no home, `Path.home()` raises and this does not
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "rdkernels"
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "rdkernels" / "Cache"
    cache = os.environ.get("XDG_CACHE_HOME") or ""
    return (pathlib.Path(cache) if os.path.isabs(cache) else home / ".cache") / "rdkernels"


def path_of(device: str) -> pathlib.Path:
    """The file of the device of that name."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-")[:60]
    return folder() / f"plans-{words}-{hashlib.sha256(device.encode()).hexdigest()[:8]}.json"


def find(device: str, key: str) -> Times | None:
    """The times measured for `key` by this process or, when it first asked, by any."""
    path = path_of(device)
    if path not in _known:
        _known[path] = _read(path)
    return _known[path].get(key)


def keep(device: str, key: str, times: Times) -> None:
    """Remember `times`, also for later processes if the folder can be written."""
    path = path_of(device)
    own = _known.setdefault(path, {})
    own[key] = times
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            merged = _read(path) | {key: times}
            _write(path, {"device": device, "plans": merged})
        _known[path] = merged | own
    except OSError as error:
        _warn(path, f"cannot be written, plans are measured anew in every process: {error}")


def _read(path: pathlib.Path) -> dict[str, Times]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        _warn(path, f"cannot be read, plans are measured anew: {error}")
        return {}
    try:
        plans = json.loads(text)["plans"]
        return {key: times for key, times in plans.items() if _sound(times)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _warn(path, f"is no file of plans, they are measured anew: {error!r}")
        return {}


def _sound(times: Any) -> bool:
    return (
        isinstance(times, dict)
        and bool(times)
        and all(name in NAMES and isinstance(t, float) and t > 0 for name, t in times.items())
    )


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Aside and renamed: whoever reads meanwhile sees the old file or the new one."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=1, sort_keys=True)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with open(path.with_suffix(".lock"), "a") as file:  # closing releases it
        end = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.005)
        yield


def _warn(path: pathlib.Path, what: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warnings.warn(f"rdkernels.planner: {path} {what}", RuntimeWarning, stacklevel=2)
