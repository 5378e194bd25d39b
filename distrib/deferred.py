"""Modules that libraries import and hardly anybody uses, put off until something is wanted of them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands for a module in ``sys.modules``; whatever is asked of it beyond ``known`` loads the module."""

    def __init__(self, name: str, known: dict[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        # Whoever goes through all modules asks for `__file__` and the like; parts are found by `__path__`.
        if attribute.startswith("__") and attribute != "__path__":
            raise AttributeError(f"module {name!r} has no attribute {attribute!r} before it is loaded")
        if sys.modules.get(name) is self:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)


def defer(name: str, **known: object) -> None:
    """Let ``import name`` cost nothing until an attribute of it is wanted that is not among the ``known``.

    Without effect where the module has been imported already.
    """
    sys.modules.setdefault(name, _Deferred(name, known))
