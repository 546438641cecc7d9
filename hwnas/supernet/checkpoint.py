"""Checkpoints of training: weights and optimizer state in one safetensors file, replaced in one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import SGD

from hwnas.errors import UserError
from hwnas.storage import write_file

_MOMENTUM = "momentum_buffer"


def save_checkpoint(path: Path, module: nn.Module, optimizer: SGD, epoch: int) -> None:
    """After `epoch` whole epochs."""
    contents = {f"module.{name}": value for name, value in module.state_dict().items()}
    contents["epoch"] = torch.tensor(epoch)
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        if state.get(_MOMENTUM) is not None:
            contents[f"optimizer.{names[parameter]}"] = state[_MOMENTUM]
    write_file(path, save({name: value.detach().contiguous().clone() for name, value in contents.items()}))


def load_checkpoint(path: Path, module: nn.Module, optimizer: SGD) -> int:
    """Restores module and optimizer; returns the whole epochs behind them. UserError if the file is not theirs."""
    contents = read_safetensors(path)
    module_state = {n.removeprefix("module."): v for n, v in contents.items() if n.startswith("module.")}
    try:
        module.load_state_dict(module_state)
        epoch = int(contents["epoch"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of this network", got=str(error).splitlines()[0]) from None
    for name, parameter in module.named_parameters():
        if f"optimizer.{name}" in contents:
            optimizer.state[parameter] = {_MOMENTUM: contents[f"optimizer.{name}"]}
    return epoch


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        contents: Mapping[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file", got=str(error)) from None
    return contents
