"""Attributes of others, such as functions of the standard library, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Replaced:
    """An attribute, in whose place something made of it stands until `undo`.

    Parameters
    ----------
    owner : object
    name : str
        Of the attribute.
    make : callable
        Gets what was there, which others may have put there, and returns what is to stand there.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._before = getattr(owner, name)
        self._ours = make(self._before)
        setattr(owner, name, self._ours)

    def undo(self) -> None:
        """Put it back; somebody who has put another one there meanwhile keeps that."""
        if getattr(self._owner, self._name) is self._ours:
            setattr(self._owner, self._name, self._before)
