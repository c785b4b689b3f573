"""What the process around has set changes no result, and is as it was afterwards."""

import threading
from typing import Any

import pytest
import torch

from linalg.matrices import gaussian
from milora.linalg import arithmetic, bottom, engine, full, take, top
from milora.linalg.values import values


def test_a_shared_setting_lasts_until_the_last_thread_has_left():
    calls: list[str] = []

    class Setting:
        def __enter__(self) -> None:
            calls.append("made")

        def __exit__(self, *_: object) -> None:
            calls.append("taken back")

    shared, inside, go = arithmetic.Shared(Setting), threading.Event(), threading.Event()

    def other() -> None:
        with shared:
            inside.set()
            assert go.wait(10)

    thread = threading.Thread(target=other)
    with shared:
        thread.start()
        assert inside.wait(10)
    assert calls == ["made"]
    go.set()
    thread.join(10)
    assert calls == ["made", "taken back"]
    with shared:
        assert calls == ["made", "taken back", "made"]


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in arithmetic._blas().info() if library["user_api"] == "blas"]


def test_the_threads_of_other_libraries_are_torchs_for_a_while(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[int]] = []
    eigh = engine.gram.scipy.linalg.eigh

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(blas_threads())
        return eigh(*args, **kwargs)

    monkeypatch.setattr(engine.gram.scipy.linalg, "eigh", watched)
    with arithmetic._blas().limit(limits=2, user_api="blas"):
        before, threads = blas_threads(), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            bottom(gaussian((40, 30)).float(), 4)
        finally:
            torch.set_num_threads(threads)
        assert len(seen) == 1 and set(seen[0]) == {1} and set(before) == {2}
        assert blas_threads() == before


@pytest.mark.parametrize("shape", [(320, 320), (400, 300), (40, 30)], ids=str)
def test_autocast_changes_no_result(shape):
    W = gaussian(shape).float()
    ask = (
        lambda: bottom(W, 8),
        lambda: top(W, 8),
        lambda: take(W, torch.tensor([1, 5])),
        lambda: full(W),
        lambda: values(W),
    )
    for compute in ask:
        expected = compute()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = compute()
            assert torch.is_autocast_enabled("cpu")
        assert torch.equal(found.U, expected.U) and torch.equal(found.S, expected.S)
        assert found.certificate == expected.certificate


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="before torch 2.9")
def test_products_are_whole_where_the_process_shortens_them(monkeypatch: pytest.MonkeyPatch):
    libraries: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    seen: list[list[str]] = []
    part = engine.gram.part

    def watched(*args: Any) -> Any:
        seen.append([x.fp32_precision for x in libraries])
        return part(*args)

    monkeypatch.setattr(engine.gram, "part", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        set_by_the_user = [x.fp32_precision for x in libraries]
        bottom(gaussian((40, 30)).float(), 4)
        assert [x.fp32_precision for x in libraries] == set_by_the_user
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [["ieee", "ieee"]] and "tf32" in set_by_the_user
