"""A module that is put off costs nothing, and is there for whoever wants something of it."""

from __future__ import annotations

import inspect
import sys

import pytest

from distrib.deferred import defer


@pytest.fixture
def put_off(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with parts that was not imported, put off."""
    for name in [name for name in sys.modules if name.split(".")[:2] == ["wsgiref", "util"]] + ["wsgiref"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "wsgiref", None)
    del sys.modules["wsgiref"]
    defer("wsgiref", known=1)
    return "wsgiref"


def test_importing_it_and_what_is_known_of_it_loads_nothing(put_off: str) -> None:
    """Broken: each process of a run takes a second longer to start."""
    import wsgiref

    assert wsgiref.known == 1  # type: ignore[attr-defined]
    inspect.getmodule(test_importing_it_and_what_is_known_of_it_loads_nothing)
    assert sys.modules[put_off] is wsgiref
    assert not hasattr(wsgiref, "__file__")


def test_its_parts_and_attributes_are_those_of_the_module_itself(put_off: str) -> None:
    """Broken: a library that does use it fails."""
    import wsgiref.util

    assert wsgiref.util.guess_scheme({}) == "http"
    assert sys.modules[put_off].__file__


def test_what_it_does_not_have_it_does_not_have(put_off: str) -> None:
    import wsgiref

    with pytest.raises(AttributeError, match="nothing_like_that"):
        wsgiref.nothing_like_that  # type: ignore[attr-defined]  # noqa: B018


def test_what_has_been_imported_stays() -> None:
    defer("inspect", known=1)
    assert sys.modules["inspect"] is inspect
