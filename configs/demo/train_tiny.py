"""An example worker: trains a tiny classifier (logistic regression by SGD, plain Python) and shows its progress.

It behaves as a training job should: one line per epoch, a progress bar drawn with carriage returns, a checkpoint after
each epoch, and a start that goes on where the last one was killed. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time


def make_data(count: int, seed: int = 7) -> list[tuple[list[float], int]]:
    """Two overlapping clouds of points in four dimensions."""
    dice = random.Random(seed)
    data = []
    for _ in range(count):
        label = dice.randint(0, 1)
        data.append(([dice.gauss(1.0 if label else -1.0, 1.8) for _ in range(4)], label))
    return data


def predict(weights: list[float], point: list[float]) -> float:
    total = weights[-1] + sum(weight * value for weight, value in zip(weights, point))
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, total))))


def train_epoch(weights: list[float], data: list[tuple[list[float], int]], rate: float, seconds: float) -> float:
    """One pass over the data, drawn as a bar and stretched to `seconds`. Returns the mean loss."""
    loss, began = 0.0, time.monotonic()
    for index, (point, label) in enumerate(data, start=1):
        guess = predict(weights, point)
        loss -= math.log(max(1e-9, guess if label else 1.0 - guess))
        for position, value in enumerate([*point, 1.0]):
            weights[position] -= rate * (guess - label) * value
        if index % (len(data) // 20) == 0:
            done = index * 20 // len(data)
            print(f"\r  {'#' * done}{'.' * (20 - done)} {done * 5:3d} %  loss {loss / index:.4f}", end="", flush=True)
            time.sleep(max(0.0, began + seconds * index / len(data) - time.monotonic()))
    return loss / len(data)


def load(path: str) -> tuple[int, list[float]]:
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
        return int(saved["epoch"]), [float(weight) for weight in saved["weights"]]
    except (OSError, ValueError, KeyError):
        return 0, [0.0] * 5


def save(path: str, epoch: int, weights: list[float]) -> None:
    """A whole checkpoint or the one before it: a kill in between leaves no half file."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump({"epoch": epoch, "weights": weights}, file)
    os.replace(path + ".new", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3600)
    parser.add_argument("--seconds-per-epoch", type=float, default=1.0)
    parser.add_argument("--data", default=os.environ.get("PROCGUARD_DEMO_DATA", "."), help="where the checkpoint lies")
    arguments = parser.parse_args()
    folder = os.path.expanduser(arguments.data)
    os.makedirs(folder, exist_ok=True)
    checkpoint = os.path.join(folder, "checkpoint.json")
    training, held_out = make_data(2000), make_data(500, seed=8)
    epoch, weights = load(checkpoint)
    attempt = os.environ.get("PROCGUARD_ATTEMPT", "?")
    print(f"attempt {attempt}: {'going on after' if epoch else 'starting at'} epoch {epoch}", flush=True)
    while epoch < arguments.epochs:
        epoch += 1
        loss = train_epoch(weights, training, rate=0.00005, seconds=arguments.seconds_per_epoch)
        right = sum((predict(weights, point) > 0.5) == bool(label) for point, label in held_out)
        line = f"epoch {epoch}/{arguments.epochs}  loss {loss:.4f}  accuracy {right / len(held_out):.3f}"
        print(f"\r{line:46}", flush=True)
        save(checkpoint, epoch, weights)
    print("done", flush=True)


if __name__ == "__main__":
    main()
