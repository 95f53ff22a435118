"""A dry run where nothing can be written: Snakemake's own notes of it go to a temporary folder."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

#: Where Snakemake keeps what it knows of results, in the working directory; and what a dry run reads of it.
_SNAKEMAKE, _READ = Path(".snakemake"), ("metadata", "incomplete")


def let_look(results: str | os.PathLike) -> None:
    """Let a dry run go on where the results or the working directory cannot be written to.

    A run that is none is refused all the same, before its first job, by
    :func:`cohortgmm.pipeline.settings.check_writable`.
    """
    if not os.access(_SNAKEMAKE if _SNAKEMAKE.is_dir() else ".", os.W_OK):
        keep_notes_elsewhere()
    if os.path.isdir(results) and not os.access(results, os.W_OK):
        take_outputs_as_they_are()


def take_outputs_as_they_are() -> None:
    """Let Snakemake not end because results that would be made anew cannot be written to."""
    from snakemake.jobs import Job

    async def check_protected_output(self: Any) -> None:
        """Nothing is refused here."""

    Job.check_protected_output = check_protected_output


def keep_notes_elsewhere() -> None:
    """Let Snakemake read its records where they are and write, also in a dry run, to a temporary folder."""
    from snakemake import persistence

    folder = Path(tempfile.mkdtemp(prefix="cohortgmm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in _READ:
        if (_SNAKEMAKE / name).is_dir():
            (folder / name).symlink_to((_SNAKEMAKE / name).absolute())
    # The class has another name in older versions.
    base: Any = getattr(persistence, "PersistenceBase", None) or persistence.Persistence
    begin = base.__init__

    @functools.wraps(begin)
    def begin_elsewhere(self: Any, *args: Any, path: Path | None = None, **options: Any) -> None:
        begin(self, *args, path=folder if path is None else path, **options)

    base.__init__ = begin_elsewhere
