"""The device that tensors live on, and the precision it computes in."""

from __future__ import annotations

import pytest
import torch

from dulvos import devices

IMAGE = torch.ones(1, 1, 3, 3)


@pytest.fixture(autouse=True)
def forgetful() -> None:
    devices.computed_in.cache_clear()


@pytest.mark.parametrize("able", [False, True])
def test_bfloat16_is_computed_if_it_is_fast_and_said_once_if_not(
    able: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    half = torch.bfloat16 if able else torch.float32
    for precision, dtype in (("bf16", half), ("fp32", torch.float32), ("bf16", half)):
        with devices.autocast(torch.device("cpu"), precision):
            assert torch.nn.functional.conv2d(IMAGE, IMAGE).dtype == dtype
    assert devices.computed_in("cuda", "bf16") == ("bf16" if able else "fp32")
    said = capsys.readouterr().out.splitlines()
    assert able and not said or len(said) == 2 and "cpu" in said[0] and "cuda" in said[1]


def test_the_default_device_is_a_cuda_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never Apple's GPU, which lacks what the losses need."""
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert devices.find_device() == torch.device(name)


def test_the_gpus_of_a_machine_share_the_processes_that_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 17)
    assert devices.reading_processes(torch.device("cpu")) == 0
    assert devices.reading_processes(torch.device("cuda")) == 8
    for gpus, each in (("4", 4), ("40", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", gpus)
        assert devices.reading_processes(torch.device("cuda")) == each
