"""The arguments that a function takes, where that is certain: no call is refused for nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    WrapperDescriptorType,
)
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BUILTIN = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)


@dataclass(frozen=True)
class Takes:
    """The arguments a function takes besides those it has been given, as by `functools.partial`."""

    signature: inspect.Signature
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, n: int) -> bool:
        """Whether it can be called with `n` more arguments."""
        try:
            self.signature.bind(*self.args, *range(n), **self.kwargs)
        except TypeError:
            return False
        return True

    @property
    def open(self) -> list[inspect.Parameter]:
        """The parameters that are not given yet."""
        try:
            given = self.signature.bind_partial(*self.args, **self.kwargs).arguments
        except TypeError:
            given = {}
        return [p for p in self.signature.parameters.values() if p.name not in given]

    @property
    def required(self) -> list[str]:
        """The names of what must be given by place."""
        return [p.name for p in self.open if p.default is p.empty and p.kind in _POSITIONAL]

    @property
    def named(self) -> list[str]:
        """The names of what must be given by name."""
        return [p.name for p in self.open if p.default is p.empty and p.kind is p.KEYWORD_ONLY]

    def __str__(self) -> str:
        bare = [p.replace(annotation=p.empty, kind=_kind(p)) for p in self.open]
        return str(inspect.Signature(bare)) if bare else "nothing"


def of(function: Any) -> Takes | None:
    """The arguments of `function`; None where only a call would say."""
    kind = type(function)
    if kind is functools.partial:
        return _with(of(function.func), function.args, function.keywords)
    if kind is MethodType:
        return _with(of(function.__func__), (function.__self__,))
    if kind is functools._lru_cache_wrapper:  # it is of C, and passes on what it is given
        return of(function.__wrapped__)
    if kind is FunctionType or isinstance(function, _BUILTIN):
        return _of_function(function)
    call = inspect.getattr_static(kind, "__call__", None)
    return _with(_of_function(call), (function,)) if isinstance(call, FunctionType) else None


def _of_function(function: Any) -> Takes | None:
    """Its own arguments, whatever it wraps: a decorator may give arguments too."""
    if "__signature__" in getattr(function, "__dict__", ()):
        return None
    try:
        return Takes(inspect.signature(function, follow_wrapped=False))
    except Exception:  # many a builtin has none
        return None


def _with(
    takes: Takes | None, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Takes | None:
    """The same function, called with these first."""
    if takes is None:
        return None
    return Takes(takes.signature, takes.args + args, {**takes.kwargs, **(kwargs or {})})


def _kind(parameter: inspect.Parameter) -> Any:
    """Without a slash in the text."""
    slashed = parameter.kind is parameter.POSITIONAL_ONLY
    return parameter.POSITIONAL_OR_KEYWORD if slashed else parameter.kind
