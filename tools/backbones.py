"""Lists the pretrained networks: python -m tools.backbones [PART OF A NAME] [--json]"""

import argparse
import json
import sys

from stages.common import params
from stages.common.backbones import BACKBONES, Backbone

HEADER = ("name", "pixels", "parameters", "top-1", "weights", "figures from")


def selected(part: str) -> dict[str, Backbone]:
    """The rows whose names hold the text, small and large letters alike."""
    return {name: row for name, row in BACKBONES.items() if part.lower() in name}


def lines(rows: dict[str, Backbone]) -> list[str]:
    """A table: native size, millions of parameters with the top, percent right on ImageNet."""
    cells = [HEADER] + [
        (
            name,
            str(row.native_size),
            f"{row.parameters:.1f} M" if row.parameters else "",
            f"{row.top_1:.1f} %" if row.top_1 else "",
            row.weights_from,
            row.source or "",
        )
        for name, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = {"pixels", "parameters", "top-1"}
    return [
        "  ".join(
            text.rjust(width) if title in right else text.ljust(width)
            for title, text, width in zip(HEADER, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def as_json(rows: dict[str, Backbone]) -> str:
    """The same for programs."""
    return json.dumps(
        {
            name: {
                "native_size": row.native_size,
                "parameters_millions": row.parameters,
                "imagenet_top_1_percent": row.top_1,
                "weights": row.weights_from,
                "source": row.source,
            }
            for name, row in rows.items()
        },
        indent=2,
    )


def main(arguments: list[str]) -> None:
    """Prints the rows that are asked for; exits with 1 where there is none."""
    parser = argparse.ArgumentParser(prog="tools.backbones", description=__doc__.split(":")[0])
    parser.add_argument("part", nargs="?", default="", help="of the name")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    rows = selected(options.part)
    if not rows:
        near = params.nearest(options.part, list(BACKBONES))
        print(f"error: no network has {options.part!r} in its name{near}", file=sys.stderr)
        raise SystemExit(1)
    print(as_json(rows) if options.json else "\n".join(lines(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
