"""Files that survive a full disk and a kill."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.storage import Journal, write_file

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(*arguments: object) -> None:
    raise FULL


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_text_bytes_and_new_folders(tmp_path):
    write_file(tmp_path / "a" / "b" / "c.txt", "grüße\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "grüße\n".encode()
    write_file(tmp_path / "a" / "b" / "c.txt", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        write_file(tmp_path / "f", "x")
        assert os.umask(0o027) == 0o027  # and the mask is as it was
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("existing", [True, False])
def test_what_cannot_be_written_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, call, existing):
    path = tmp_path / "f"
    if existing:
        path.write_text("old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError) as caught:
        write_file(path, "new")
    assert "free some space" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == (["f"] if existing else [])
    assert not existing or path.read_text() == "old"


def test_ctrl_c_while_writing_leaves_the_old_content(tmp_path, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "f"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, "new")
    assert names(tmp_path) == ["f"]
    assert path.read_text() == "old"


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(UserError):
        write_file(tmp_path / "f" / "g", "y")
    with pytest.raises(UserError):
        write_file(tmp_path, "y")
    assert names(tmp_path) == ["f"]


def test_under_a_real_limit_of_the_operating_system(tmp_path):
    """A process that may write no file above 4 KB: a file and a journal keep what they had."""
    script = f"""
import json, resource, signal
from pathlib import Path
from hwnas.errors import UserError
from hwnas.storage import Journal, write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path)!r})
write_file(folder / "f", "old")
journal = Journal.create(folder / "j", {{"format": 1}})
journal.append({{"n": 0}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for action in (lambda: write_file(folder / "f", "x" * 10000), lambda: journal.append({{"n": "x" * 10000}})):
    try:
        action()
    except UserError as error:
        print("refused")
journal.append({{"n": 1}})
print(json.dumps(journal.rows))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["refused", "refused", '[{"n": 0}, {"n": 1}]'], done.stderr
    assert (tmp_path / "f").read_text() == "old"
    assert Journal.read(tmp_path / "j").rows == [{"n": 0}, {"n": 1}]
    assert names(tmp_path) == ["f", "j"]


ROWS = st.lists(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.text(max_size=8), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none()),
        max_size=4,
    ),
    max_size=5,
)


@given(header=st.dictionaries(st.text(max_size=3), st.integers()), content=ROWS)
def test_rows_come_back(tmp_path_factory, header, content):
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal.create(path, header)
    for row in content:
        journal.append(row)
    for again in (Journal.read(path), Journal.resume(path)):
        assert again.header == journal.header == header
        assert again.rows == journal.rows == content


def test_every_place_at_which_a_kill_can_cut(tmp_path):
    path = tmp_path / "j"
    journal = Journal.create(path, {"format": 1})
    rows = [{"n": 1, "s": "é\n"}, {"n": [2]}, {"n": {"a": 3.5}}]
    for row in rows:
        journal.append(row)
    whole = path.read_bytes()
    ends = [i + 1 for i, b in enumerate(whole) if b == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        if complete == 0:
            for door in (Journal.read, Journal.resume):
                with pytest.raises(UserError, match="no header"):
                    door(path)
            continue
        if cut in ends:
            assert Journal.read(path).rows == rows[: complete - 1]
        else:
            with pytest.raises(UserError, match=f"truncated in line {complete + 1}"):
                Journal.read(path)
        resumed = Journal.resume(path)
        assert resumed.rows == rows[: complete - 1]
        assert path.read_bytes() == whole[: ends[complete - 1]]
        resumed.append({"next": True})
        assert Journal.read(path).rows == [*rows[: complete - 1], {"next": True}]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"5\n", b"[]\n", b"{}\nnull\n", b"{}\n{\n{}\n", b"{}\n\n{}\n", b"\xff\n", b"{} {}\n", b"{}\x00\n"]
)
def test_what_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "j"
    path.write_bytes(content)
    for door in (Journal.read, Journal.resume):
        with pytest.raises(UserError) as caught:
            door(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == content


def test_a_missing_journal_and_a_folder(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        for door in (Journal.read, Journal.resume):
            with pytest.raises(UserError):
                door(path)


@pytest.mark.parametrize("row", [{"n": float("nan")}, {"n": float("inf")}, {"n": object()}])
def test_a_row_that_is_no_json_changes_nothing(tmp_path, row):
    journal = Journal.create(tmp_path / "j", {"format": 1})
    before = (tmp_path / "j").read_bytes()
    with pytest.raises((ValueError, TypeError)):
        journal.append(row)
    assert (tmp_path / "j").read_bytes() == before
    assert journal.rows == []
    journal.append({"n": 1})
    assert Journal.read(tmp_path / "j").rows == [{"n": 1}]


def test_a_full_disk_while_appending_takes_back_the_half_line(tmp_path, monkeypatch):
    path = tmp_path / "j"
    journal = Journal.create(path, {"format": 1})
    journal.append({"n": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)  # by now the line is in the file
        with pytest.raises(UserError, match="free some space"):
            journal.append({"n": 2})
    assert path.read_bytes() == before
    assert journal.rows == [{"n": 1}]
    journal.append({"n": 3})
    assert Journal.read(path).rows == [{"n": 1}, {"n": 3}]


def test_a_full_disk_while_resuming_leaves_the_torn_file(tmp_path, monkeypatch):
    path = tmp_path / "j"
    path.write_bytes(b'{"format": 1}\n{"n": 1}\n{"n":')
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError):
            Journal.resume(path)
    assert path.read_bytes() == b'{"format": 1}\n{"n": 1}\n{"n":'
    assert Journal.resume(path).rows == [{"n": 1}]


def test_each_row_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    synced: list[bytes] = []
    real = os.fsync

    def spy(handle: int) -> None:
        real(handle)
        synced.append(path.read_bytes() if path.exists() else b"")

    path = tmp_path / "j"
    journal = Journal.create(path, {"format": 1})
    monkeypatch.setattr(os, "fsync", spy)
    for n in range(3):
        journal.append({"n": n})
        assert len(synced) == n + 1
        assert json.loads(synced[-1].splitlines()[-1]) == {"n": n}


def test_killed_while_appending(tmp_path):
    """SIGKILL from outside, after the process has told of some rows: those are there, in order, and none is half."""
    script = f"""
from pathlib import Path
from hwnas.storage import Journal
journal = Journal.create(Path({str(tmp_path / "j")!r}), {{"format": 1}})
n = 0
while True:
    journal.append({{"n": n}})
    print(n, flush=True)
    n += 1
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)][-1]
    process.kill()
    process.wait()
    process.stdout.close()
    rows = Journal.resume(tmp_path / "j").rows
    assert len(rows) > told
    assert rows == [{"n": i} for i in range(len(rows))]
