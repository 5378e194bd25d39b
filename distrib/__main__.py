"""`python -m distrib` and the console script `ketos` are the same command."""

from __future__ import annotations

import atexit
import os
import signal
import sys


def main() -> None:
    """Run the command line; exits 0 on success, 2 on bad usage or input, 1 on a failed run, and 128 + signal
    where a signal asked for the end and the state was saved."""
    # Must be set before numpy is loaded. Its matrices here are small: straightening a line with two threads
    # took six times the processor time of one, in every worker process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from distrib.cli.main import ketos
    from distrib.deferred import defer

    # Lightning imports torchmetrics, which imports this for an alias of an old name, and with it half of
    # scipy: more than a quarter of the time in which a process of a run starts.
    defer("scipy.signal", hamming=None)
    try:
        ketos(prog_name="ketos")
    except SystemExit as end:
        _end_readers()
        if {"WORLD_SIZE", "SLURM_PROCID"} & os.environ.keys():
            _leave(end.code)
        raise


def _end_readers() -> None:
    """Kill worker processes that are left: told to end, they would go on until their time is up."""
    if "multiprocessing" in sys.modules:
        from multiprocessing import active_children

        # torch would raise an error here as each of them ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in active_children():
            child.kill()


def _leave(code: str | int | None) -> None:
    """End one of several processes without the destructors of its libraries.

    Threads of a process group now and then abort a process that has done all its work, and a launcher then
    takes the whole job for failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
