# The compiled module; its wrappers in hwnas/kernels carry the types that matter.
from typing import Any

def __getattr__(name: str) -> Any: ...
