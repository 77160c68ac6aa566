"""Time and memory against the number of images: python -m tools.benchmark_scale 2500 10000 40000

Makes that many small photographs in a temporary folder and runs the stages that see every image
before training: fetch, split, preprocess; smaller numbers several times, in turn. Writes
benchmarks/scale.json, or what --output says.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from stages.common import params
from stages.common.run import UserError, cores, progress, run
from tools.benchmark import photograph
from tools.memory import peak_bytes

RESULTS = Path("benchmarks/scale.json")
STAGES = ("fetch", "split", "preprocess")
CLASSES = 10
SIDE = 32  # pixels
ROUNDS = 3
# All that decides how much work the stages have, whatever a preset put into params.yaml.
MEASURED = {
    "dataset": {
        "name": "image_folder",
        "path": "data/own",
        "splits": None,
        "on_bad_image": "error",
        "pixel_limit": 100_000_000,
        "beam_runner": None,
        "beam_options": None,
        "beam_folder": None,
    },
    "split": {
        "sample": 1.0,
        "method": "stratified",
        "train": 0.65,
        "valid": 0.1,
        "test": 0.25,
        "folds": None,
        "fold": 0,
        "stratify_columns": None,
        "near_duplicate_distance": 2,
        "official_copies": "leave_out",
        "min_images_per_class": 3,
    },
    "preprocess": {"image_size": SIDE, "resize": "squash", "channels": 3},
}
LARGEST_REPEATED = 200_000  # images; beyond, seconds that come and go are a small part
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measured:
    """One stage on one number of images."""

    stage: str
    images: int
    seconds: float  # the start of Python and TensorFlow included; the median of all rounds
    peak_mebibytes: float  # the highest of all rounds
    all_seconds: tuple[float, ...] = ()  # of each round


def write_photograph(number: int, folder: Path) -> None:
    """Writes one of the photographs to the folder of its class."""
    path = folder / f"class {number % CLASSES}" / f"{number:08}.jpg"
    path.write_bytes(photograph(number, (SIDE, SIDE), "JPEG"))


def make_project(folder: Path, count: int) -> None:
    """A folder that the stages run in: params.yaml and `count` images."""
    content = params.read(ROOT / "params.yaml")
    for section, values in MEASURED.items():
        content[section] |= values
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    own = folder / "data" / "own"
    for number in range(CLASSES):
        (own / f"class {number}").mkdir(parents=True)
    with ProcessPoolExecutor(cores()) as pool:
        made = pool.map(partial(write_photograph, folder=own), range(count), chunksize=256)
        for _ in progress(made, total=count, unit="image", description="make"):
            pass


def measure(folder: Path, stage: str, count: int) -> Measured:
    """Runs a stage in a folder."""
    before, environment = Path.cwd(), os.environ.get("PYTHONPATH")
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        start = time.perf_counter()
        peak = peak_bytes([sys.executable, "-m", f"stages.{stage}"], quiet=True)
        return Measured(stage, count, time.perf_counter() - start, peak / 2**20)
    finally:
        os.chdir(before)
        os.environ.pop("PYTHONPATH")
        if environment is not None:
            os.environ["PYTHONPATH"] = environment


def clear(folder: Path) -> None:
    """Removes what stages wrote, as DVC does before each of them."""
    for path in (folder / "data").iterdir():
        if path.name != "own":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def measure_all(counts: Sequence[int], parent: Path) -> list[Measured]:
    """Every stage on every number of images, in turn, as often as ROUNDS says.

    Args:
        counts: numbers of images.
        parent: folder for the projects.
    """
    folders = {count: parent / str(count) for count in counts}
    for count, folder in folders.items():
        folder.mkdir()
        make_project(folder, count)
    rounds: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    for number in range(ROUNDS if max(counts) <= LARGEST_REPEATED else 1):
        for count, folder in folders.items():
            clear(folder)
            for stage in STAGES:
                measured = measure(folder, stage, count)
                print(f"round {number + 1}: {measured}", file=sys.stderr, flush=True)
                rounds[stage, count].append(measured)
    return [
        Measured(
            stage,
            count,
            statistics.median(one.seconds for one in all_of_it),
            max(one.peak_mebibytes for one in all_of_it),
            tuple(one.seconds for one in all_of_it),
        )
        for (stage, count), all_of_it in rounds.items()
    ]


def md5_rate(mebibytes: int = 256) -> float:
    """Mebibytes a second that one core brings through MD5, as DVC does for every output."""
    block = os.urandom(2**20)
    digest = hashlib.md5(usedforsecurity=False)
    start = time.perf_counter()
    for _ in range(mebibytes):
        digest.update(block)
    return mebibytes / (time.perf_counter() - start)


def rates(smaller: Measured, larger: Measured) -> list[float]:
    """Images a second between two numbers of images, of each round that both have, or of medians.

    It is free of what every start costs: where time grows as a straight line, all rates of a stage
    are equal. Where noise hid the difference there is none.
    """
    pairs = [(smaller.seconds, larger.seconds)]
    if len(smaller.all_seconds) == len(larger.all_seconds) > 0:
        pairs = list(zip(smaller.all_seconds, larger.all_seconds, strict=True))
    count = larger.images - smaller.images
    return [count / (after - before) for before, after in pairs if after > before]


def growth(rows: Sequence[Measured]) -> str:
    """A table: seconds, images a second beyond the number before, the same over the rate before it.

    Of several rounds the median, of rates and of ratios within a round.
    """
    lines = [f"{'':<12} {'images':>9} {'seconds':>9} {'images/s':>9} {'ratio':>9} {'peak MiB':>9}"]
    for stage in STAGES:
        of_stage = [row for row in rows if row.stage == stage]
        before: list[float] = []
        for smaller, row in zip([None, *of_stage], of_stage, strict=False):
            found = rates(smaller, row) if smaller else []
            rate = f"{statistics.median(found):.0f}" if found else ""
            ratio = ""
            if found and len(found) == len(before):
                ratios = (now / then for now, then in zip(found, before, strict=True))
                ratio = f"{statistics.median(ratios):.2f}"
            elif found and before:
                ratio = f"{statistics.median(found) / statistics.median(before):.2f}"
            before = found
            lines.append(
                f"{stage:<12} {row.images:>9} {row.seconds:>9.1f} {rate:>9} {ratio:>9} "
                f"{row.peak_mebibytes:>9.0f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures every number that is asked for, the smallest first."""
    parser = argparse.ArgumentParser(
        prog="tools.benchmark_scale", description=__doc__.split(":")[0]
    )
    parser.add_argument("images", nargs="+", type=int, help="numbers of images, 100 or more")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"default: {RESULTS}")
    options = parser.parse_args()
    counts = sorted(options.images)
    if counts[0] < 100:
        raise UserError(f"expected 100 images or more, received {counts[0]}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Measured] = []
    repeated = [count for count in counts if count <= LARGEST_REPEATED]
    alone = [[count] for count in counts if count > LARGEST_REPEATED]
    for together in filter(None, [repeated, *alone]):
        with tempfile.TemporaryDirectory(prefix="warmstart-scale-") as folder:
            rows += measure_all(together, Path(folder))
        print(growth(rows), flush=True)
        results = {
            "cores": cores(),
            "side": SIDE,
            "md5_mebibytes_per_second": md5_rate(),
            "rows": [asdict(row) for row in rows],
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
