"""An example gang: distributed training (torch, gloo on CPUs) that checkpoints, and resumes where it was.

Nothing about ranks, addresses or ports stands here: `rendezvous: torch` puts them into the environment, where
init_process_group finds them. Started by torchrun it is the same program.

Rank 0 writes the checkpoint: to a temporary file, to the disk, then in the place of the last one, so that a power cut
leaves the old or the new one, never half of one. At the start rank 0 tells all others where to go on. An
optimizer with a memory of its own, such as Adam, would be saved and told as well. If a spare may take rank 0 over,
`--checkpoint` must lie where the spare's host finds it (a shared file system).
"""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = resume(options.checkpoint, model, rank)
    wrapped = DistributedDataParallel(model)
    print(f"rank {rank} of {world}, epoch {os.environ.get('PROCGUARD_EPOCH', '-')}: begins at step {done}", flush=True)
    target = torch.linspace(-1.0, 1.0, 8).unsqueeze(1)
    for step in range(done + 1, options.steps + 1):
        data = torch.randn(64, 8, generator=torch.Generator().manual_seed(step * world + rank))
        loss = nn.functional.mse_loss(wrapped(data), torch.tanh(data @ target))
        optimizer.zero_grad()
        loss.backward()  # here the gradients of all ranks are averaged
        optimizer.step()
        if rank == 0 and (step % options.every == 0 or step == options.steps):
            save(options.checkpoint, model, step)
            print(f"step {step} loss {loss.item():.4f}", flush=True)
        time.sleep(options.pause)
    dist.barrier()
    print(f"rank {rank}: finished at step {options.steps}, weights {checksum(model):.6f}", flush=True)
    dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to watch it")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for the others to come and to answer")
    return parser.parse_args()


def resume(path: str, model: nn.Module, rank: int) -> int:
    """The steps that are done already, the same on all ranks. Rank 0's weights reach the others with the first use of
    DistributedDataParallel."""
    done = torch.zeros(1, dtype=torch.int64)
    if rank == 0 and os.path.exists(path):
        found = torch.load(path, weights_only=True)
        model.load_state_dict(found["model"])
        done[0] = found["step"]
    dist.broadcast(done, src=0)
    return int(done.item())


def save(path: str, model: nn.Module, step: int) -> None:
    with open(path + ".new", "wb") as file:
        torch.save({"step": step, "model": model.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def checksum(model: nn.Module) -> float:
    return float(sum(parameter.abs().sum().item() for parameter in model.parameters()))


if __name__ == "__main__":
    main()
