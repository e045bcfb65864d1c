"""Where tensors live, and what is computed there."""

from __future__ import annotations

import pytest
import torch

from dulvos import devices


@pytest.fixture(autouse=True)
def forgetful() -> None:
    devices.computed_in.cache_clear()


def test_float32_is_taken_where_bfloat16_is_slow_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    for _ in range(2):
        with devices.autocast(torch.device("cpu"), "bf16"):
            assert torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).dtype == torch.float32
    assert devices.computed_in("cuda", "bf16") == "fp32"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "this cpu device computes bfloat16 slowly, so float32 is taken" in said[0] and "cuda" in said[1]


def test_what_is_asked_for_is_computed_where_it_can_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with devices.autocast(torch.device("cpu"), precision):
            assert torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).dtype == dtype
        assert devices.computed_in("cpu", precision) == precision
    assert capsys.readouterr().out == ""


def test_the_default_device_is_a_gpu_that_the_tests_know_or_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not Apple's, where what the losses need is missing."""
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert devices.find_device() == torch.device(name)


def test_processes_that_read_are_shared_by_the_gpus_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 17)
    assert devices.reading_processes(torch.device("cpu")) == 0
    assert devices.reading_processes(torch.device("cuda")) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert devices.reading_processes(torch.device("cuda")) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert devices.reading_processes(torch.device("cuda")) == 1
