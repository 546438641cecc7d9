"""Checkpoints of training: weights and optimizer state in one safetensors file, replaced in one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

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
    epoch = _load_module(path, contents, module)
    for name, parameter in module.named_parameters():
        if f"optimizer.{name}" in contents:
            optimizer.state[parameter] = {_MOMENTUM: contents[f"optimizer.{name}"]}
    return epoch


def load_weights(path: Path, module: nn.Module) -> None:
    """The module alone. UserError if the file is not a checkpoint of it."""
    _load_module(path, read_safetensors(path), module)


def save_search(path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], epoch: int) -> None:
    """Several modules and the optimizers of their parameters, after `epoch` whole epochs."""
    contents = {"epoch": torch.tensor(epoch)}
    for name, module in modules.items():
        contents |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    contents[f"optimizer.{name}.{number}.{key}"] = value
    write_file(path, save({name: value.detach().cpu().contiguous().clone() for name, value in contents.items()}))


def load_search(path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> int:
    """Restores what `save_search` saved; returns the whole epochs behind it. UserError if the file is not theirs."""
    contents = read_safetensors(path)
    try:
        for name, module in modules.items():
            prefix = f"module.{name}."
            module.load_state_dict({n.removeprefix(prefix): v for n, v in contents.items() if n.startswith(prefix)})
        epoch = int(contents["epoch"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of this search", got=str(error).splitlines()[0]) from None
    for name, optimizer in optimizers.items():
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"optimizer.{name}.{number}."
            state = {n.removeprefix(prefix): v for n, v in contents.items() if n.startswith(prefix)}
            if state:  # Adam counts its steps on the processor
                optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    return epoch


def _load_module(path: Path, contents: Mapping[str, Tensor], module: nn.Module) -> int:
    """Restores a module; returns the whole epochs behind it."""
    try:
        module.load_state_dict({n.removeprefix("module."): v for n, v in contents.items() if n.startswith("module.")})
        return int(contents["epoch"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of this network", got=str(error).splitlines()[0]) from None


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        contents: Mapping[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file", got=str(error)) from None
    return contents
