"""The one exception for what a user can mend. The command line prints it as one line and exits with code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A rule that the input broke, the value that broke it, and the remedy, on one line.

    >>> str(UserError("a budget needs a unit", got="2", remedy="write 2ms, 30MMACs, 1Mparams or 512KB"))
    "a budget needs a unit; got '2'; write 2ms, 30MMACs, 1Mparams or 512KB"
    """

    def __init__(self, rule: str, *, got: object = None, remedy: str = "") -> None:
        parts = [rule]
        if got is not None:
            text = " ".join(str(got).split())
            parts.append(f"got {text[:200]!r}" if isinstance(got, str) else f"got {text[:200]}")
        if remedy:
            parts.append(remedy)
        super().__init__("; ".join(parts))
