"""What tests of the command line share: its environment, how a refusal looks, and ONNX files of others."""

from __future__ import annotations

import os
from pathlib import Path

from onnx import TensorProto, helper

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "COLUMNS": "100"}


def refused(result, *parts):
    """Exit code 2, nothing on stdout, one line on stderr that holds these parts."""
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    return True


def foreign(path: Path, op: str = "Relu", domain: str = "", dims=("n", 3, 4)) -> Path:
    """An ONNX file that hwnas has not written."""
    node = helper.make_node(op, ["in"], ["out"], domain=domain)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("in", "out")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())
    return path
