"""Errors about numbers: at once on a CPU, without waiting on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bridger.heads.positions import coordinates, grid_code, sequence_code
from bridger.number_checks import refuse_if


def explain() -> ValueError:
    return ValueError("wrong")


def test_on_a_cpu_errors_come_at_once() -> None:
    refuse_if(torch.tensor(False), explain)
    with pytest.raises(ValueError, match="wrong"):
        refuse_if(torch.tensor(True), explain)


def test_compiled_code_keeps_one_graph() -> None:
    def checked(x: Tensor) -> Tensor:
        refuse_if((x < 0).any(), explain)
        return 2 * x

    compiled = torch.compile(checked, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_is_waited_for_and_errors_come_later() -> None:
    wrong, right = torch.tensor(True, device="cuda"), torch.tensor(False, device="cuda")
    with torch.no_grad(), pytest.raises(ValueError, match="wrong"):
        refuse_if(wrong, explain)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(10_000_000)  # so that no answer is there yet
        refuse_if(wrong, explain)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="wrong"):
        refuse_if(right, explain)
    refuse_if(right, explain)


def test_position_codes_are_computed_once_and_serve_training_too() -> None:
    with torch.inference_mode():
        first = sequence_code(5, 6), grid_code(3, 5, 8), coordinates(2, 7)
    again = sequence_code(5, 6), grid_code(3, 5, 8), coordinates(2, 7)
    for one, other in zip(first, again, strict=True):
        assert one is other and not one.is_inference()
        weight = torch.ones(one.shape, requires_grad=True)
        (weight * one).sum().backward()
        assert weight.grad is not None and torch.equal(weight.grad, one)
    assert sequence_code(6, 6) is not first[0] and len(sequence_code(6, 6)) == 6


def test_position_codes_of_fake_tensors_are_fake() -> None:
    sequence_code(5, 10)
    with FakeTensorMode():
        assert isinstance(sequence_code(5, 10), FakeTensor)
    assert not isinstance(sequence_code(5, 10), FakeTensor)
