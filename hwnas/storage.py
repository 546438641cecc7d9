"""Files that survive a kill: whole files are written aside and renamed, journals grow by whole lines that are on the disk."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwnas.errors import UserError


def write_file(path: Path, content: bytes | str) -> None:
    """Replaces a file's content in one step. When the disk is full, the previous content stays."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException as error:
        Path(aside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


class Journal:
    """A file of JSON lines, the first of which is its header. Each row is on the disk before `append` returns.

    A kill can tear the last line only: `Journal.resume` drops it, `Journal.read` refuses the file.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        self.path = path
        self.header = dict(header)
        self.rows = rows

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        write_file(path, _line(header))
        return cls(path, header, [])

    @classmethod
    def read(cls, path: Path) -> Journal:
        """The journal as it is. UserError if it is missing, torn or not made of JSON objects."""
        header, rows, torn = _parse(path)
        if torn is not None:
            raise UserError(
                f"{path} is truncated in line {len(rows) + 2}", got=torn, remedy="run the command that wrote it again"
            )
        return cls(path, header, rows)

    @classmethod
    def resume(cls, path: Path) -> Journal:
        """The journal up to its last whole row, ready to be continued."""
        header, rows, torn = _parse(path)
        if torn is not None:
            journal = cls(path, header, rows)
            write_file(path, journal.text())
            return journal
        return cls(path, header, rows)

    def text(self) -> str:
        """What the file holds, as far as this journal has read and written it."""
        return "".join(_line(row) for row in (self.header, *self.rows))

    def append(self, row: Mapping[str, Any]) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self.path, size)
            raise _cannot_write(self.path, error) from error
        self.rows.append(dict(row))


def _parse(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], str | None]:
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read", got=str(error)) from error
    tail = lines.pop()  # empty if the last line is whole
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"line {number} of {path} is not a JSON object", got=line[:60], remedy="delete the file and write it again"
            )
        parsed.append(row)
    if not parsed:
        raise UserError(f"{path} has no header", got=tail[:60] or "an empty file", remedy="delete the file and write it again")
    return parsed[0], parsed[1:], tail or None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _cannot_write(path: Path, error: OSError) -> UserError:
    remedy = "free some space and run again" if error.errno == errno.ENOSPC else "choose a folder that can be written"
    return UserError(f"{path} cannot be written", got=error.strerror or str(error), remedy=remedy)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
