"""The code on a page of the documentation, which tests run as it stands there."""

import pathlib
import re

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def code(page):
    """Heading of a section (from the second level on; "" before the first) → its Python, in one piece."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found, heading = {}, ""
    for title, block in re.findall(r"^##+ ([^\n]+)$|^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if title:
            heading = title
        else:
            found[heading] = found.get(heading, "") + block
    return found
