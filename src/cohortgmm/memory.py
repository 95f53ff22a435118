"""Available memory: that of the machine or, if it is less, that of the control group (cgroup) of this process."""

import os
from contextlib import suppress
from pathlib import Path

#: Files with the memory limit of the control group and with the memory in use, for versions 2 and 1 of control groups.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory() -> int | None:
    """Bytes that this process can still allocate; None if the system does not report them."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        (line,) = (
            row
            for row in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
            if row.startswith("MemAvailable:")
        )
        found.append(int(line.split()[1]) * 1024)
    for limit, used in _GROUPS:
        with suppress(OSError, ValueError):  # without a limit, the file has the text "max", a ValueError
            found.append(
                max(int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")), 0)
            )
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
