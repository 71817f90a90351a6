"""Drivers and GPUs by what nvidia-smi prints."""

from __future__ import annotations

import pytest

from cluster.health.finding import Finding
from cluster.health.gpus import check_driver, check_gpus, gpu_lines, wheels_cuda
from tests.cluster.health.machines import H100

NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)


def levels(nvidia_smi: str | None, cuda: int | None = 13) -> dict[str, str]:
    findings = check_gpus(nvidia_smi, cuda)
    return {finding.name: finding.level for finding in findings}


def test_a_machine_of_eight() -> None:
    gpus, driver = check_gpus("\n".join([H100] * 8), 13)
    assert gpus == Finding("GPU", "8 x NVIDIA H100 80GB HBM3, 81559 MiB")
    assert driver == Finding("driver", "580.82.07, for CUDA 13 wheels 580 or newer")


def test_two_kinds_are_counted_apart() -> None:
    gpus, _ = check_gpus(f"{H100}\nNVIDIA L40S, 46068 MiB, 580.82.07\n{H100}", 13)
    assert gpus.state == (
        "2 x NVIDIA H100 80GB HBM3, 81559 MiB; 1 x NVIDIA L40S, 46068 MiB"
    )


@pytest.mark.parametrize(
    ("driver", "cuda", "level"),
    [
        ("580.65.06", 13, "ok"),
        ("590.44.01", 13, "ok"),
        ("580", 13, "ok"),
        ("575.57.08", 13, "failure"),
        ("535.183.06", 13, "failure"),
        ("535.183.06", 12, "ok"),
        ("470.256.02", 12, "failure"),
        ("580.65.06", 99, "ok"),
        ("580.65.06", None, "ok"),
    ],
)
def test_driver_against_wheels(driver: str, cuda: int | None, level: str) -> None:
    assert check_driver(driver, cuda).level == level


def test_an_old_driver_is_told_which_one_is_needed() -> None:
    old = H100.replace("580.82.07", "570.133.20")
    _, driver = check_gpus(old, 13)
    assert driver.state == "570.133.20"
    assert driver.remedy == (
        "the wheels are built for CUDA 13: install driver 580 or newer"
    )


@pytest.mark.parametrize("printed", [None, "", "No devices were found"])
def test_no_gpu_is_well(printed: str | None) -> None:
    assert levels(printed) == {"GPU": "ok"}


@pytest.mark.parametrize(
    "printed", [NO_DRIVER, "nvidia-smi gave no answer within 10 s", "[N/A], x"]
)
def test_a_driver_that_does_not_answer(printed: str) -> None:
    assert levels(printed) == {"GPU": "failure"}
    assert gpu_lines(printed) == []


def test_the_wheels_of_this_environment_are_cuda_13() -> None:
    """requirements/*.txt pin torch's CUDA wheels; a build without any has no version."""
    assert wheels_cuda() in (13, None)
