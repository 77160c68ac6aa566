"""Tables that are made from data, in pages that people write around them."""

import re
from collections.abc import Callable, Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, without a line break at its end."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, made: Callable[[str], str]) -> str:
    """The page with all that stands between `<!-- table: NAME -->` and `<!-- end -->` made anew.

    Args:
        page: its text.
        made: a table's name to its text.
    """
    return re.sub(
        r"<!-- table: (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table: {match[1]} -->\n\n{made(match[1])}\n\n<!-- end -->",
        page,
        flags=re.DOTALL,
    )
