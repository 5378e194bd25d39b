"""`python -m distrib` and the console script `ketos` are the same command."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line; exits 0 on success, 2 on bad usage or input, 1 on a failed run."""
    # Must be set before numpy is loaded. Its matrices here are small: straightening a line with two threads
    # took six times the processor time of one, in every worker process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from distrib.cli.main import ketos

    ketos(prog_name="ketos")


if __name__ == "__main__":
    main()
