"""One file per search space, each with a function `space(...)`. A space outside the package is named by its dotted path."""

from __future__ import annotations

import inspect
from typing import Any

from hwnas.errors import UserError
from hwnas.plugins import load, parse_call
from hwnas.space import Space


def make_space(text: str, **defaults: Any) -> Space:
    """The space that `name` or `name(argument=value, ...)` names; `defaults` hold where the text says nothing.

    Raises UserError for an unknown name or argument, or values that the space refuses.
    """
    name, arguments = parse_call(text, "space")
    make = getattr(load("hwnas.spaces", name, "space"), "space", None)
    if make is None:
        raise UserError("a space's module defines space(...)", got=name)
    known = list(inspect.signature(make).parameters)
    unknown = [a for a in arguments if a not in known]
    if unknown:
        raise UserError(f"space {name} has no argument {unknown[0]!r}", remedy=f"known: {', '.join(known)}")
    try:
        space = make(**{**defaults, **arguments})
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"space {name} cannot be built: {error}", got=text) from error
    if not isinstance(space, Space):
        raise UserError(f"space {name} must return a Space", got=type(space).__name__)
    return space
