"""`python -m distrib` and the console script `ketos` are the same command."""

from __future__ import annotations


def main() -> None:
    """Run the command line; exits 0 on success, 2 on bad usage or input, 1 on a failed run."""
    from distrib.cli.main import ketos

    ketos(prog_name="ketos")


if __name__ == "__main__":
    main()
