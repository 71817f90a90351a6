"""Two ranks on this machine add numbers: `python -m cluster.health.all_reduce RANK PORT BACKEND` is one of them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cluster.health.finding import Finding
from common.machine.address import free_port

RANKS = 2
LIMIT_S = 60.0
ROOT = Path(__file__).parents[2]


def check_all_reduce(num_gpus: int) -> Finding:
    """Let two processes reduce a number, over NCCL where there are two GPUs, else over gloo."""
    backend = "nccl" if num_gpus >= RANKS else "gloo"
    name = f"all-reduce, {backend}"
    start = time.monotonic()
    ranks = []
    port = free_port()
    for rank in range(RANKS):
        words = [sys.executable, "-m", "cluster.health.all_reduce"]
        words += [str(rank), str(port), backend]
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ranks.append(process)
    problem = ""
    for process in ranks:
        left_s = max(0.1, start + LIMIT_S - time.monotonic())
        try:
            _, said = process.communicate(timeout=left_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            problem = problem or f"no answer within {LIMIT_S:g} s"
            continue
        if process.returncode and not problem:
            problem = (said.strip().splitlines() or ["it died"])[-1]
    if problem:
        remedy = f"set {_interface_variable(backend)} to the network between the ranks, NCCL_DEBUG=INFO shows more"
        return Finding(name, problem, remedy, is_fatal=True)
    seconds = time.monotonic() - start
    return Finding(name, f"{RANKS} ranks agree, {seconds:.1f} s with their start")


def _interface_variable(backend: str) -> str:
    return "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"


def reduce_as(rank: int, port: int, backend: str) -> None:
    """One of the ranks: rank r gives r + 1, and all get 3."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=RANKS)
    number = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(number)
    total = number.item()
    dist.destroy_process_group()
    if total != 3:
        raise RuntimeError(f"expected 1 + 2 = 3 from an all-reduce, got {total:g}")


if __name__ == "__main__":
    reduce_as(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
