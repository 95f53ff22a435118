"""Snakemake imported once: every line of standard input asks for a call, which is a fork of this process.

A request is a JSON object with the arguments, the working directory, the environment, the files of the output and the
seconds that it may take; the answer is the exit status.
"""

import json
import os
import signal
import sys

import snakemake
from snakemake.cli import main


def become_a_call(request: dict) -> None:
    """Make a forked process look like one that was started as ``python -m snakemake``."""
    for descriptor, path in enumerate([os.devnull, request["stdout"], request["stderr"]]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["directory"]
    sys.argv = [os.path.join(os.path.dirname(snakemake.__file__), "__main__.py"), *request["arguments"]]
    signal.alarm(request["seconds"])


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            become_a_call(json.loads(line))
            main()
            sys.exit()
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
