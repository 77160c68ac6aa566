"""Time and memory against the number of images: python -m tools.benchmark_scale 2500 10000 40000

Makes that many small photographs in a temporary folder and runs the stages that see every image
before training: fetch, split, preprocess. Writes benchmarks/scale.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from stages.common import params
from stages.common.run import UserError, progress, run
from tools.benchmark import photograph
from tools.memory import peak_bytes

RESULTS = Path("benchmarks/scale.json")
STAGES = ("fetch", "split", "preprocess")
CLASSES = 10
SIDE = 32  # pixels
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measured:
    """One stage on one number of images."""

    stage: str
    images: int
    seconds: float  # the start of Python and TensorFlow included
    peak_mebibytes: float


def write_photograph(number: int, folder: Path) -> None:
    """Writes one of the photographs to the folder of its class."""
    path = folder / f"class {number % CLASSES}" / f"{number:08}.jpg"
    path.write_bytes(photograph(number, (SIDE, SIDE), "JPEG"))


def make_project(folder: Path, count: int) -> None:
    """A folder that the stages run in: params.yaml and `count` images."""
    content = params.read(ROOT / "params.yaml")
    content["dataset"].update(name="image_folder", path="data/own")
    content["split"]["stratify_columns"] = None
    content["preprocess"]["image_size"] = SIDE
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    own = folder / "data" / "own"
    for number in range(CLASSES):
        (own / f"class {number}").mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
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
        peak = peak_bytes([sys.executable, "-m", f"stages.{stage}"], stderr=subprocess.DEVNULL)
        return Measured(stage, count, time.perf_counter() - start, peak / 2**20)
    finally:
        os.chdir(before)
        os.environ.pop("PYTHONPATH")
        if environment is not None:
            os.environ["PYTHONPATH"] = environment


def md5_rate(mebibytes: int = 256) -> float:
    """Mebibytes a second that one core brings through MD5, as DVC does for every output."""
    block = os.urandom(2**20)
    digest = hashlib.md5(usedforsecurity=False)
    start = time.perf_counter()
    for _ in range(mebibytes):
        digest.update(block)
    return mebibytes / (time.perf_counter() - start)


def growth(rows: Sequence[Measured]) -> str:
    """A table: seconds, images a second beyond the smallest number, peak memory.

    The rate between two numbers is free of what every start costs: where time grows as a straight
    line all rates of a stage are equal.
    """
    lines = [f"{'':<12} {'images':>9} {'seconds':>9} {'images/s':>9} {'peak MiB':>9}"]
    for stage in STAGES:
        of_stage = [row for row in rows if row.stage == stage]
        for smaller, row in zip([None, *of_stage], of_stage, strict=False):
            rate = ""
            if smaller and row.seconds > smaller.seconds:
                rate = f"{(row.images - smaller.images) / (row.seconds - smaller.seconds):.0f}"
            lines.append(
                f"{stage:<12} {row.images:>9} {row.seconds:>9.1f} {rate:>9} "
                f"{row.peak_mebibytes:>9.0f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures every number that is asked for, the smallest first."""
    parser = argparse.ArgumentParser(
        prog="tools.benchmark_scale", description=__doc__.split(":")[0]
    )
    parser.add_argument("images", nargs="+", type=int, help="numbers of images, 100 or more")
    counts = sorted(parser.parse_args().images)
    if counts[0] < 100:
        raise UserError(f"expected 100 images or more, received {counts[0]}")
    rows: list[Measured] = []
    for count in counts:
        folder = Path(tempfile.mkdtemp(prefix="warmstart-scale-"))
        try:
            make_project(folder, count)
            rows += [measure(folder, stage, count) for stage in STAGES]
        finally:
            shutil.rmtree(folder)
        print(growth(rows), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        results = {
            "cores": os.cpu_count(),
            "side": SIDE,
            "md5_mebibytes_per_second": md5_rate(),
            "rows": [asdict(row) for row in rows],
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
