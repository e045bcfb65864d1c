"""Devices, their precision, and their memory."""

import shutil
import subprocess
import sys

import pytest
import torch

from dulvos import devices

IMAGE = torch.ones(1, 1, 3, 3)


@pytest.fixture(autouse=True)
def forgetful() -> None:
    devices.computed_in.cache_clear()


@pytest.mark.parametrize("able", [False, True])
def test_bfloat16_is_computed_if_it_is_fast_and_said_once_if_not(able, monkeypatch, capsys):
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
    """Never Apple's GPU, which lacks functions that the losses need."""
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert devices.find_device() == torch.device(name)


def test_the_gpus_of_a_machine_share_the_processes_that_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.CPU_COUNT", 17)
    assert devices.reading_processes(torch.device("cpu")) == 0
    assert devices.reading_processes(torch.device("cuda")) == 8
    for gpus, each in (("4", 4), ("40", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", gpus)
        assert devices.reading_processes(torch.device("cuda")) == each


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of Linux")
def test_a_container_leaves_less_memory_than_the_machine() -> None:
    """A limit on resident memory replaces a container's, which only root can set."""
    code = ("import resource, torch; resource.setrlimit(resource.RLIMIT_RSS, (2**31, 2**31)); "
            "from dulvos.devices import free_memory; print(free_memory(torch.device('cpu')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**29 < int(done.stdout) < 2**31


def test_processes_that_read_fit_into_shared_memory(tmp_path, capsys, monkeypatch) -> None:
    assert devices.fitting_processes(8, 2**20, str(tmp_path)) == 8
    assert devices.fitting_processes(8, 2**20, str(tmp_path / "absent")) == 8 and not capsys.readouterr().out
    assert devices.fitting_processes(8, 2**60, str(tmp_path)) == 0
    assert str(tmp_path) in capsys.readouterr().out
    size = shutil.disk_usage(tmp_path).free // 30  # room for ten
    assert devices.fitting_processes(8, size, str(tmp_path)) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert devices.fitting_processes(8, size, str(tmp_path)) == 2
