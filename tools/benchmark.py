"""Compares speeds side by side, as ratios: `make benchmark`, after a `make repro`.

Every case of a table runs in turn, several rounds long, in one process on one machine; the tables
show medians of the rounds, their spread, and the ratio to the first case. Absolute rates belong to
the machine that they were taken on.

Writes: benchmarks/results.json — the same figures, with the machine and the versions.
"""

import importlib.util
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common import images, paths
from stages.common.run import UserError, data_options, progress, run, start_tensorflow
from tools import benchmark_training as training

RESULTS = Path("benchmarks/results.json")
ROUNDS = 7
SEEDS = 40  # of the head whose accuracy is compared
IMAGE_SIZE = 224  # pixels, what most pretrained networks see
PACKAGES = ("tensorflow", "keras", "pillow", "numpy")
OPTIONAL_PACKAGES = ("onnxruntime", "torch", "timm")  # theirs are further rows


@dataclass(frozen=True)
class Rate:
    """One case of a table: images per second, medians and extremes over the rounds."""

    case: str
    median: float
    lowest: float
    highest: float
    ratio: float  # median of the rounds' ratios to the table's first case


def rates(
    cases: dict[str, Callable[[], object]],
    count: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> list[Rate]:
    """Runs all cases once to warm up, then `rounds` times in turn.

    A ratio is taken within each round, between neighbours in time, so that a machine that slows
    down for a while slows both sides.

    Args:
        cases: name to a function that handles `count` images.
        count: images that one call handles.
        rounds: how often each case is timed.
        clock: seconds that only grow.
        warm_up: whether the first call of a case is left out; what builds its graph at every call,
            as a user's script does, has nothing to warm.
    """
    for work in cases.values() if warm_up else ():
        work()
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for _ in progress(range(rounds), total=rounds, unit="round", description="benchmark"):
        for name, work in cases.items():
            start = clock()
            work()
            measured[name].append(count / (clock() - start))
    first = next(iter(measured.values()))
    return [
        Rate(
            case=name,
            median=statistics.median(values),
            lowest=min(values),
            highest=max(values),
            ratio=statistics.median(a / b for a, b in zip(values, first, strict=True)),
        )
        for name, values in measured.items()
    ]


def table(title: str, rows: Sequence[Rate]) -> str:
    """Lines of text: a case a row."""
    lines = [title, f"{'':<42} {'images/s':>9} {'from':>9} {'to':>9} {'ratio':>7}"]
    for row in rows:
        lines.append(
            f"{row.case:<42} {row.median:>9.0f} {row.lowest:>9.0f} {row.highest:>9.0f} "
            f"{row.ratio:>7.2f}"
        )
    return "\n".join(lines)


def photograph(number: int, size: tuple[int, int], kind: str) -> bytes:
    """An encoded picture with shapes and a little noise, as compressible as a photograph."""
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + generator.normal(0, 4, smooth.shape)
    encoded = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(encoded, kind, quality=90)
    return encoded.getvalue()


def pillow_alone(encoded: bytes, image_size: int) -> np.ndarray:
    """What a user's own script does: open, convert, resize."""
    with Image.open(io.BytesIO(encoded)) as image:
        square = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(square)


def decoding(encoded: Sequence[bytes], image_size: int, pool: ProcessPoolExecutor) -> dict:
    """The cases of decode and resize; every one uses all cores."""
    import tensorflow as tf

    def with_tensorflow(antialias: bool) -> int:
        def decode(content):
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
            return tf.image.resize(image, (image_size, image_size), antialias=antialias)

        dataset = tf.data.Dataset.from_tensor_slices(list(encoded))
        # As ours reads: autotuning might make it wait at its end, and is no part of decoding.
        dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        return sum(1 for _ in dataset.with_options(data_options()))

    def with_processes() -> int:
        work = partial(pillow_alone, image_size=image_size)
        return sum(1 for _ in pool.map(work, encoded, chunksize=16))

    def ours() -> int:
        work = partial(images.to_array, image_size=image_size, resize="squash")
        return sum(1 for _ in images.parallel_map(work, encoded))

    return {
        "Pillow, a process a core": with_processes,
        "tf.io.decode_image, tf.image.resize": partial(with_tensorflow, False),
        "the same, antialiased as ours": partial(with_tensorflow, True),
        "preprocess (images.to_array)": ours,
    }


def main() -> None:
    """Runs every table and prints it."""
    if not paths.HEAD.exists():
        raise UserError(f"{paths.HEAD} does not exist; `make repro` makes what is measured")
    start_tensorflow(0)
    decoded, trained = {}, {}
    for title, make, rounds in (
        ("Ten epochs of a head, from shards", training.head_epochs, 5),
        ("Forward pass of the frozen network", training.forward_pass, ROUNDS),
        ("An epoch of fine-tuning", training.fine_tuning, ROUNDS),
        ("Nothing to do", training.nothing_to_do, ROUNDS),
    ):
        cases, count = make()
        rows = rates(cases, count, rounds, warm_up=make is not training.head_epochs)
        print("\n" + table(title, rows), flush=True)
        trained[title] = [asdict(row) for row in rows]
    accuracies = training.head_accuracies(SEEDS)
    for case, values in accuracies.items():
        mean, spread = statistics.mean(values), statistics.stdev(values)
        print(f"validation accuracy of the head, {case}: {mean:.4f} ± {spread:.4f}")
    gained = [ours - theirs for theirs, ours in zip(*accuracies.values(), strict=True)]
    error = statistics.stdev(gained) / len(gained) ** 0.5
    print(f"difference, ours less the tutorial's: {statistics.mean(gained):+.4f} ± {error:.4f}")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for title, kind, size, count in (
            ("JPEG, 4000 by 3000", "JPEG", (4000, 3000), 16),
            ("JPEG, 1024 by 768", "JPEG", (1024, 768), 200),
            ("JPEG, 500 by 375", "JPEG", (500, 375), 400),
            ("PNG, 300 by 300", "PNG", (300, 300), 400),
            ("JPEG, 32 by 32", "JPEG", (32, 32), 4000),
        ):
            encoded = [photograph(number, size, kind) for number in range(count)]
            rows = rates(decoding(encoded, IMAGE_SIZE, pool), count, ROUNDS)
            print("\n" + table(f"Decode and resize to {IMAGE_SIZE}: {title}", rows), flush=True)
            decoded[title] = [asdict(row) for row in rows]
    versions = {
        name: metadata.version(name)
        for name in (*PACKAGES, *OPTIONAL_PACKAGES)
        if name in PACKAGES or importlib.util.find_spec(name)
    }
    machine = {"cores": os.cpu_count(), "system": platform.platform(), **versions}
    RESULTS.parent.mkdir(exist_ok=True)
    results = {
        "machine": machine,
        "decoding": decoded,
        "training": trained,
        "head_validation_accuracy": accuracies,
    }
    text = json.dumps(results, indent=2, sort_keys=True)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(f"\nwritten to {RESULTS}")


if __name__ == "__main__":
    run(main)
