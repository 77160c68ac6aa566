"""Puts the table of docs/scaling.md together from benchmarks/: python -m tools.scaling_table

What a million, a hundred million and ten billion images would take, were every rate that of the
machine that was measured. The table stands between `<!-- table: scaling -->` and `<!-- end -->`.
"""

import json
from pathlib import Path
from typing import Any

from stages.common import params
from stages.common.run import run
from tools import benchmark, benchmark_scale, markdown

PAGE = Path("docs/scaling.md")
COUNTS = {"a million": 10**6, "a hundred million": 10**8, "ten billion": 10**10}
PHOTOGRAPH = "JPEG, 500 by 375"  # the row of benchmarks/results.json that stands for a photograph
ASSUMED_GPU_RATIO = 30  # no GPU was measured; a person who has one puts the real ratio here
FEATURES = 3120  # of all blocks of EfficientNet-Lite0
FLOAT16_BYTES = 2


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    place = 0
    while count >= 1000 and place < len(units) - 1:
        count, place = count / 1000, place + 1
    return f"{count:.3g} {units[place]}"


def hours(seconds: float) -> str:
    """Seconds as hours, or as years of one core where they are many."""
    found = seconds / 3600
    if found < 10:
        return f"{found:.2g} h"
    return f"{float(f'{found:.2g}'):,.0f} h" if found < 10_000 else f"{found / 8766:.2g} years"


def per_core(rates: list[dict[str, Any]], case: str, cores: int) -> float:
    """Images a second and core of the case whose name begins so."""
    (rate,) = [row["median"] for row in rates if row["case"].startswith(case)]
    return rate / cores


def growth(rows: list[dict[str, Any]], stage: str) -> tuple[float, float]:
    """Of a stage, between the two largest numbers: images a second, bytes of memory an image."""
    smaller, larger = sorted(
        (row for row in rows if row["stage"] == stage), key=lambda row: row["images"]
    )[-2:]
    images = larger["images"] - smaller["images"]
    rate = images / (larger["seconds"] - smaller["seconds"])
    return rate, (larger["peak_mebibytes"] - smaller["peak_mebibytes"]) * 2**20 / images


def rows(results: dict[str, Any], scale: dict[str, Any], content: dict[str, Any]) -> list[list]:
    """Cells of the table: what, then a value for each of `COUNTS`.

    Args:
        results: of benchmarks/results.json.
        scale: of benchmarks/scale.json.
        content: of params.yaml.
    """
    cores = results["machine"]["cores"]
    encoded = [len(benchmark.photograph(n, (500, 375), "JPEG")) for n in range(20)]
    side, views = content["preprocess"]["image_size"], content["extract_features"]["views"]
    pixels = side * side * 3
    decode = per_core(results["decoding"][PHOTOGRAPH], "preprocess", cores)
    training = results["training"]
    forward = per_core(training["Forward pass of the frozen network"], "extract_features", cores)
    tuning = per_core(training["An epoch of fine-tuning"], "ours", cores)
    an_epoch = "an epoch of fine-tuning, all layers"
    on_a_gpu = f"on a GPU *assumed* to be {ASSUMED_GPU_RATIO} cores"
    split, split_memory = growth(scale["rows"], "split")
    md5 = scale["md5_mebibytes_per_second"] * 2**20
    found = [
        ("photographs, as `data/raw` keeps them", lambda n: size(n * sum(encoded) / 20)),
        (f"`data/images`, {side} by {side}", lambda n: size(n * pixels)),
        (
            f"`data/features`, all blocks, {views} views",
            lambda n: size(n * views * FEATURES * FLOAT16_BYTES),
        ),
        ("decoding once, on one core", lambda n: hours(n / decode)),
        ("`split`, on one core", lambda n: hours(n / split)),
        ("`split`, memory", lambda n: size(n * split_memory)),
        ("MD5 of `data/images`, on one core", lambda n: hours(n * pixels / md5)),
        (f"frozen pass, {views} views, on one core", lambda n: hours(n * views / forward)),
        (f"{an_epoch}, on one core", lambda n: hours(n / tuning)),
        (
            f"frozen pass, {views} views, {on_a_gpu}",
            lambda n: hours(n * views / forward / ASSUMED_GPU_RATIO),
        ),
        (f"{an_epoch}, {on_a_gpu}", lambda n: hours(n / tuning / ASSUMED_GPU_RATIO)),
    ]
    return [[what, *(value(count) for count in COUNTS.values())] for what, value in found]


def filled(page: str, root: Path = Path()) -> str:
    """The page with its table made anew."""
    results, scale = (
        json.loads((root / path).read_text(encoding="utf-8"))
        for path in (benchmark.RESULTS, benchmark_scale.RESULTS)
    )
    made = markdown.table(["", *COUNTS], rows(results, scale, params.read(root / "params.yaml")))
    return markdown.filled(page, {"scaling": made}.__getitem__)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run(main, takes_arguments=False)
