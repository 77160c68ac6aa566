"""Compares speeds side by side, as ratios: `make benchmark`, after a `make repro`.

Every case of a table runs in turn, several rounds long, in one process on one machine; the tables
show medians of the rounds, their spread, and the ratio to the first case. Absolute rates belong to
the machine that they were taken on. `--only JPEG` and the like measure some of the tables anew.

Writes: benchmarks/results.json — the same figures, with the machine, the versions, and of each
        table the commit.
"""

import argparse
import importlib.util
import io
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from stages import preprocess
from stages.common import geometry, paths
from stages.common.datasets.raw import RawImage
from stages.common.run import UserError, cores, data_options, progress, run, start_tensorflow
from tools import benchmark_training as training
from tools import sweep

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


def table(title: str, rows: Sequence[Rate], unit: str = "images/s") -> str:
    """Lines of text: a case a row."""
    lines = [title, f"{'':<42} {unit:>9} {'from':>9} {'to':>9} {'ratio':>7}"]
    for row in rows:
        numbers = (row.median, row.lowest, row.highest)
        cells = (f"{value:>9.0f}" if value >= 100 else f"{value:>9.3g}" for value in numbers)
        lines.append(f"{row.case:<42} {' '.join(cells)} {row.ratio:>7.2f}")
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

    placed = [
        preprocess.Placed(RawImage(str(number), "train", content, 0, {}), "train")
        for number, content in enumerate(encoded)
    ]
    given = geometry.PreprocessParams(image_size=image_size, resize="squash", channels=3)

    def ours() -> int:
        return sum(1 for _ in preprocess.decoded(placed, given))

    return {
        "Pillow, a process a core": with_processes,
        "tf.io.decode_image, tf.image.resize": partial(with_tensorflow, False),
        "the same, antialiased as ours": partial(with_tensorflow, True),
        "preprocess": ours,
    }


NOTHING_TO_DO = "Nothing to do"
TRAINING = {  # title to what makes the cases, and the rounds
    "Ten epochs of a head, from shards": (training.head_epochs, 5),
    "Forward pass of the frozen network": (training.forward_pass, ROUNDS),
    "An epoch of fine-tuning": (training.fine_tuning, ROUNDS),
    NOTHING_TO_DO: (training.nothing_to_do, ROUNDS),
}
ACCURACY = "Accuracy of the head on the validation split"
# Title to format, size, how many, the side in pixels that all cases end at, and the rounds.
DECODING = {
    "JPEG, 4000 by 3000": ("JPEG", (4000, 3000), 16, IMAGE_SIZE, ROUNDS),
    "JPEG, 1024 by 768": ("JPEG", (1024, 768), 200, IMAGE_SIZE, ROUNDS),
    "JPEG, 500 by 375": ("JPEG", (500, 375), 400, IMAGE_SIZE, ROUNDS),
    "PNG, 300 by 300": ("PNG", (300, 300), 400, IMAGE_SIZE, ROUNDS),
    # Ours never enlarges, so that only this side is equal work; as many as the start of processes,
    # half a second which Pillow's have behind them, takes to be a small part. A round takes most of
    # a minute.
    "JPEG, 32 by 32": ("JPEG", (32, 32), 160_000, 32, 3),
}


def chosen(texts: Sequence[str]) -> set[str]:
    """The titles of the tables that have one of the texts; all where there is none.

    Raises:
        UserError: a text is in no title.
    """
    titles = {*TRAINING, ACCURACY, *DECODING}
    for text in texts:
        if not any(text.lower() in title.lower() for title in titles):
            raise UserError(
                f"--only: expected a part of one of {sorted(titles)}, received {text!r}"
            )
    return {
        title
        for title in titles
        if not texts or any(text.lower() in title.lower() for text in texts)
    }


def machine() -> dict[str, str | int]:
    """Cores, processor, system and versions."""
    versions = {
        name: metadata.version(name)
        for name in (*PACKAGES, *OPTIONAL_PACKAGES)
        if name in PACKAGES or importlib.util.find_spec(name)
    }
    return {
        "cores": cores(),
        "processor": processor(),
        "system": platform.platform(),
        **versions,
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def earlier_results(here: dict[str, str | int]) -> dict:
    """What benchmarks/results.json has, to which a few tables are added.

    Raises:
        UserError: it is of another machine, so that its tables and new ones can't be compared.
    """
    if not RESULTS.exists():
        return {}
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in ("cores", "processor", "system", *PACKAGES):
        if content["machine"].get(name) != here[name]:
            raise UserError(
                f"--only: {RESULTS} was measured with {name} {content['machine'].get(name)}, here "
                f"it is {here[name]}; measure all tables, without --only"
            )
    # Versions of optional packages that are not here belong to rows that stay.
    return content | {"machine": content["machine"] | here}


def check_last_run() -> None:
    """UserError where `make repro` would still run something: models of other params, code, data.

    One of the tables runs `dvc repro`, which then would train and replace them.
    """
    if not paths.HEAD.exists():
        raise UserError(f"{paths.HEAD} does not exist; `make repro` makes what is measured")
    if json.loads(sweep.dvc("status", "--json")):
        raise UserError(
            "expected the results of the present params, code and data, which are measured, "
            "received older ones, as `dvc status` lists; run `make repro` first"
        )


def measure_accuracy() -> dict[str, list[float]]:
    """Prints and returns the accuracies of both heads."""
    accuracies = training.head_accuracies(SEEDS)
    print(f"\n{ACCURACY}")
    for case, values in accuracies.items():
        print(f"{case}: {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    gained = [ours - theirs for theirs, ours in zip(*accuracies.values(), strict=True)]
    error = statistics.stdev(gained) / len(gained) ** 0.5
    print(f"difference, ours less the tutorial's: {statistics.mean(gained):+.4f} ± {error:.4f}")
    return accuracies


def main() -> None:
    """Runs the tables and prints them."""
    parser = argparse.ArgumentParser(prog="tools.benchmark", description=__doc__.split(":")[0])
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="measure the tables whose titles have this text; the others stay as they are",
    )
    options = parser.parse_args()
    wanted, here = chosen(options.only), machine()
    results = earlier_results(here) if options.only else {}
    results.setdefault("machine", here)
    check_last_run()
    start_tensorflow(0)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()

    def keep(part: str, title: str, found) -> None:
        """Writes what there is after every table: what took long may be cut off."""
        if part == "head_validation_accuracy":
            results[part] = found
        else:
            results.setdefault(part, {})[title] = found
        results.setdefault("commits", {})[title] = commit
        RESULTS.parent.mkdir(exist_ok=True)
        text = json.dumps(results, indent=2, sort_keys=True)
        RESULTS.write_text(text + "\n", encoding="utf-8")

    for title in filter(wanted.__contains__, TRAINING):
        make, rounds = TRAINING[title]
        cases, count = make()
        rows = rates(cases, count, rounds, warm_up=make is not training.head_epochs)
        unit = "runs/s" if title == NOTHING_TO_DO else "images/s"
        print("\n" + table(title, rows, unit), flush=True)
        keep("training", title, [asdict(row) for row in rows])
    if ACCURACY in wanted:
        keep("head_validation_accuracy", ACCURACY, measure_accuracy())
    with ProcessPoolExecutor(cores()) as pool:
        for title in filter(wanted.__contains__, DECODING):
            kind, size, count, side, rounds = DECODING[title]
            encoded = [photograph(number, size, kind) for number in range(count)]
            rows = rates(decoding(encoded, side, pool), count, rounds)
            print("\n" + table(f"Decode and resize to {side}: {title}", rows), flush=True)
            keep("decoding", title, [asdict(row) for row in rows])
    print(f"\nwritten to {RESULTS}")


if __name__ == "__main__":
    run(main)
