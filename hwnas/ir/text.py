"""Archs as text that people read and the parser takes back.

    x = input(3, 32, 32)
    stem = conv_bn(x, out=16, kernel=3)
    stage1.layer1 = mbconv(stem, out=24, kernel=5, expand=6)
    head = classifier(stage1.layer1, classes=10)
    output(head)

The lines have Python's syntax and are read with its parser, but nothing is evaluated: arguments are literals.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import Op
from hwnas.ir.tensor import TensorSpec
from hwnas.plugins import UNREADABLE, dotted, literal_keywords


def print_arch(arch: Arch) -> str:
    dtype = "" if arch.input.dtype == "float32" else f", dtype={arch.input.dtype!r}"
    lines = [f"{INPUT} = input({', '.join(map(str, arch.input.dims))}{dtype})"]
    for node in arch.nodes:
        arguments = [*node.inputs, *(f"{k}={v!r}" for k, v in node.op.arguments().items())]
        lines.append(f"{node.name} = {node.op.name()}({', '.join(arguments)})")
    return "\n".join([*lines, f"output({arch.output})"]) + "\n"


def parse_arch(text: str, op_class: Callable[[str], type[Op]]) -> Arch:
    """The arch that `print_arch` printed. `op_class` finds an op's class by name.

    Raises UserError naming the line that cannot be read.
    """
    lines = [(i + 1, line) for i, line in enumerate(text.splitlines()) if line.strip() and not line.lstrip().startswith("#")]
    spec: TensorSpec | None = None
    nodes: list[Node] = []
    for number, line in lines:
        try:
            target, function, names, arguments = _parse_line(line)
            if function == "output" and target is None:
                (output,) = names
                if number != lines[-1][0] or spec is None or arguments:
                    raise ValueError("output(...) comes last")
                return Arch(spec, tuple(nodes), str(output))
            if target is None:
                raise ValueError("a node needs a name")
            if function == "input":
                dtype = arguments.pop("dtype", "float32")
                if spec is not None or target != INPUT or arguments:
                    raise ValueError(f"the one input is {INPUT} = input(channels, height, width)")
                spec = TensorSpec(tuple(int(str(d)) for d in names), str(dtype))
            else:
                op = op_class(function)(**arguments)
                nodes.append(Node(target, op, tuple(str(n) for n in names)))
        except UserError as error:
            raise UserError(f"line {number} of the arch: {error}") from None
        except UNREADABLE as error:
            reason = str(error) if isinstance(error, ValueError | TypeError) else "not a line of an arch"
            raise UserError(f"line {number} of the arch: {reason}", got=line) from None
    raise UserError("an arch ends with output(...)", got=lines[-1][1] if lines else "no lines")


def _parse_line(line: str) -> tuple[str | None, str, list[object], dict[str, object]]:
    """`target = function(names..., key=literal...)`; names are dotted names, or numbers in the input's line."""
    (statement,) = ast.parse(line.strip()).body
    target = None
    if isinstance(statement, ast.Assign):
        (left,) = statement.targets
        target = dotted(left)
    elif not isinstance(statement, ast.Expr):
        raise ValueError("not a line of an arch")
    call = statement.value
    if not isinstance(call, ast.Call):
        raise ValueError("not a line of an arch")
    names: list[object] = [a.value if isinstance(a, ast.Constant) else dotted(a) for a in call.args]
    return target, dotted(call.func), names, literal_keywords(call)
