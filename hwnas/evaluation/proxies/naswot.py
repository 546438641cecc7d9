"""NASWOT (Mellor et al. 2021): log |det K| of the kernel K_ij = units - hamming(code_i, code_j) of a batch's activation codes.

Images that switch the rectifiers in the same way are hard to tell apart. A network without rectifiers scores minus infinity,
written as the least float.
"""

from __future__ import annotations

import sys

import torch

from hwnas.evaluation.passes import Passes


def proxy(passes: Passes) -> float:
    if not passes.codes:
        return -sys.float_info.max
    codes = torch.cat([c.double() for c in passes.codes], 1)
    agreements = codes @ codes.T + (1 - codes) @ (1 - codes).T
    found = float(torch.linalg.slogdet(agreements).logabsdet)
    return max(found, -sys.float_info.max)
