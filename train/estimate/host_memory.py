"""What a process takes of its host's memory, its peak since a moment, and what it and its neighbours may still take."""

from __future__ import annotations

from pathlib import Path

from train.errors import UserError

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Limit, usage and what of the usage is a cache that the kernel gives up: version 2, then version 1.
_FILES = (("memory.max", "memory.current", "inactive_file"), ("memory.limit_in_bytes", "memory.usage_in_bytes", ""))
_KILOBYTE = 1024


def resident() -> int:
    """Bytes of this process now."""
    return _kilobytes(_PROC / "self/status", "VmRSS")


def peak() -> int:
    """The most bytes of this process since `forget_peak`."""
    return _kilobytes(_PROC / "self/status", "VmHWM")


def forget_peak() -> None:
    """`peak` begins anew. Raises UserError where the system has no such thing."""
    try:
        (_PROC / "self/clear_refs").write_text("5")
    except OSError as error:
        raise UserError(
            f"/proc/self/clear_refs: cannot be written ({error.strerror}), and without it the memory of a trial is not "
            "known: leave out --find-micro-batch"
        ) from error


def available(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes that processes here can still take without one of them being killed: of the machine, and of every group
    with a limit that this process is in."""
    rooms = [_kilobytes(proc / "meminfo", "MemAvailable")]
    for line in (proc / "self/cgroup").read_text(encoding="ascii", errors="replace").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            base = cgroups / kinds
            folder = base / path.lstrip("/")
            rooms += [
                room for place in (folder, *folder.parents) if place.is_relative_to(base) for room in _room(place)
            ]
    return max(0, min(rooms))


def _room(group: Path) -> list[int]:
    """Bytes below the limit of one group; none where it has no limit."""
    for limit, usage, cache in _FILES:
        try:
            most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most != "max":
            return [int(most) - used + int(counts.get(cache or "total_inactive_file", 0))]
    return []


def _kilobytes(file: Path, name: str) -> int:
    """The number of a line such as `VmRSS:  123 kB`, in bytes. Raises UserError where the system has no such file."""
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): leave out --find-micro-batch") from error
    return next(int(line.split()[1]) * _KILOBYTE for line in lines if line.startswith(f"{name}:"))
