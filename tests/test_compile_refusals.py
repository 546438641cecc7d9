"""What a user can mend is refused in one line, before any work as far as it can be known then."""

from __future__ import annotations

import pytest
from runs import SPACE, run

from hwnas.errors import UserError
from hwnas.latency.session import providers

pytestmark = pytest.mark.usefixtures("fake_device")


@pytest.mark.parametrize(
    "arguments",
    [
        {"space": "nosuch"}, {"space": "mobilenet(nosuch=1)"}, {"space": "mobilenet(input=(3,8,8))"},
        {"space": "mobilenet(classes=3"},
        {"data": "nosuch"}, {"device": "nosuch"}, {"strategy": "nosuch"}, {"strategy": "evolution(nosuch=1)"},
        {"strategy": "evolution(sample=0)"}, {"predictor": "nosuch"}, {"sampling": "nosuch"}, {"budget": ""}, {"budget": "2"},
        {"budget": "2 parsecs"}, {"evaluations": 0}, {"epochs": 0}, {"supernet_epochs": 0}, {"size": 0}, {"limit": 3},
        {"seed": -1},
        {"device": "cuda"}, {"space": f"{SPACE[:-1]},classes=3)"}, {"strategy": "evolution(population=4, sample=2.5)"},
        {"strategy": "os.path"}, {"predictor": "json"}, {"budget": "1e999ms"}, {"predictor": "lookup_table(x=1)"},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_user_can_mend_is_refused_in_one_line_before_anything_is_written(folder, arguments):
    if arguments.get("device") == "cuda" and "CUDAExecutionProvider" in providers():
        pytest.skip("there is a GPU")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        run(folder, **arguments)
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before  # not even a profile
