"""Classes of scripts on the way: with what cloudpickle leaves behind."""

from __future__ import annotations

import contextlib
from typing import Any

from cloudpickle.cloudpickle import (
    _DYNAMIC_CLASS_TRACKER_BY_ID,
    _class_setstate,
    _make_skeleton_class,
    _make_skeleton_enum,
)

_OF_EVERY_MEMBER = ("_name_", "__objclass__", "_sort_order_")


def complete(kind: Any, reduced: Any) -> Any:
    """What cloudpickle has made of the class `kind`, and the rest of it."""
    if not isinstance(reduced, tuple):
        return reduced
    make, made_of, *state = reduced
    if make is _make_skeleton_class:
        made_of[3]["__qualname__"] = kind.__qualname__  # of a class in a class both names
        # Else instances would get a dict. (A NamedTuple may not name them.)
        if "__slots__" in vars(kind) and not issubclass(kind, tuple):
            made_of[3]["__slots__"] = kind.__slots__
        return _class, made_of, *state
    if make is _make_skeleton_enum:
        return make, made_of, (state[0], *_members(kind)), None, None, _set_enum
    return reduced


def _class(*made_of: Any) -> type:
    """As cloudpickle makes it, but once: it makes a class for each time that a pickle names it.

    All but the first are thrown away, but not before ``__init_subclass__`` has been told of them.
    """
    known: type | None = _DYNAMIC_CLASS_TRACKER_BY_ID.get(made_of[4])
    made: type = _make_skeleton_class(*made_of) if known is None else known
    return made


def _members(kind: Any) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What ``__init__`` or ``__new__`` has given to each member of an enum; other names of it."""
    given = {
        member.name: {k: v for k, v in vars(member).items() if k not in _OF_EVERY_MEMBER}
        for member in kind
    }
    aliases = {name: member.name for name, member in kind.__members__.items()}
    return given, {name: known for name, known in aliases.items() if name != known}


def _set_enum(kind: Any, state: tuple[Any, ...]) -> None:
    of_class, given, aliases = state
    members = kind._member_map_
    # The aliases are among the attributes, as the members that they were.
    attributes, slots = of_class
    _class_setstate(kind, ({k: v for k, v in attributes.items() if k not in aliases}, slots))
    for name, attributes in given.items():
        vars(members[name]).update(attributes)
        with contextlib.suppress(TypeError):  # a value that cannot be hashed is looked for
            kind._value2member_map_[attributes["_value_"]] = members[name]
    for name, known in aliases.items():
        members[name] = members[known]
        type.__setattr__(kind, name, members[known])  # an enum lets nobody else do so
