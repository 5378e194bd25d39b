"""How this package's own programs are started, wherever that is: not with modules of the working folder.

``python -m`` puts the working folder first on the path of modules, so that a file ``inspect.py`` beside a
user's data would end every process. Python 3.11 and later heed ``PYTHONSAFEPATH``, which the processes that
they start inherit; older ones are started by a line of code that takes the folder off the path first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

SAFE_PATH: Final[Mapping[str, str]] = {"PYTHONSAFEPATH": "1"}
"""To be laid over the variables of such a program."""

_BY_CODE: Final = (
    "import sys; sys.path = [path for path in sys.path if path]; from runpy import run_module; "
    "run_module('{module}', run_name='__main__', alter_sys=True)"
)


def module_words(
    python: str, module: str, *flags: str, version: tuple[int, ...] = sys.version_info[:2]
) -> tuple[str, ...]:
    """The beginning of the command line that runs a module of ours by the interpreter ``python``, which is
    taken to have this one's ``version``; ``flags`` are its own."""
    if version >= (3, 11):
        return (python, *flags, "-m", module)
    return (python, *flags, "-c", _BY_CODE.format(module=module))
