"""Settings of the process that would change the engine's numbers, put aside while it computes.

    autocast                        products in bfloat16 or float16
    TF32, or bfloat16 for float32   products with 10 or 7 bits (`torch.set_float32_matmul_precision`)
    scipy's own BLAS                as many threads as torch takes here

In such products a residual of 1e-6 cannot be told from one of 1e-3, so that no result would pass its checks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_REDUCED = ("tf32", "bf16")


class Shared:
    """A setting of the whole process, held as long as any thread is inside.

    The first thread makes it and the last one takes it back: were each to put back what it found, one that came later
    would find what another had set, and leave that behind.

    Args:
        setting: makes the context manager of the setting.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting, self._lock, self._inside, self._stack = setting, Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(self._setting())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


@contextmanager
def exact(W: Tensor) -> Generator[None]:
    """Within the block, products on W's device are in the precision of their factors."""
    with _PRODUCTS, torch.autocast(W.device.type, enabled=False):
        yield


@contextmanager
def _whole_products() -> Generator[None]:
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    libraries = (backends.cuda.matmul, backends.mkldnn.matmul)
    reduced = [(x, x.fp32_precision) for x in libraries if x.fp32_precision in _REDUCED]
    for library, _ in reduced:
        library.fp32_precision = "ieee"
    try:
        yield
    finally:
        for library, before in reduced:
            library.fp32_precision = before


@cache
def _blas() -> Any:
    """The BLAS libraries of this process; finding them takes longer than a small matrix."""
    return ThreadpoolController()


def _as_many_threads() -> AbstractContextManager[Any]:
    threads = torch.get_num_threads()
    if all(x.num_threads == threads for x in _blas().lib_controllers if x.user_api == "blas"):
        return nullcontext()  # setting them takes as long as a solve
    return _blas().limit(limits=threads, user_api="blas")


_PRODUCTS = Shared(_whole_products)
# scipy brings its own BLAS; within this block it takes as many threads as torch does here.
torch_threads = Shared(_as_many_threads)
