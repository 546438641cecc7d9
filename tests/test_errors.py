"""UserError: rule, value, remedy, on one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import UserError


def test_the_example_of_the_class():
    error = UserError("a budget needs a unit", got="2", remedy="write 2ms, 30MMACs, 1Mparams or 512KB")
    assert str(error) == "a budget needs a unit; got '2'; write 2ms, 30MMACs, 1Mparams or 512KB"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("got", "text"),
    [
        (None, "rule"),
        (0, "rule; got 0"),
        ("", "rule; got ''"),
        ([1, "a"], "rule; got [1, 'a']"),
        ("a\n b\t c", "rule; got 'a b c'"),
    ],
)
def test_values(got, text):
    assert str(UserError("rule", got=got)) == text


@given(st.text(max_size=1000))
def test_any_value_gives_one_short_line(value):
    message = str(UserError("rule", got=value, remedy="remedy"))
    assert len(message.splitlines()) == 1
    assert message.startswith("rule; got ")
    assert message.endswith("; remedy")
    assert len(message) <= 10 * 200 + 30  # at most ten characters for one that cannot be printed
