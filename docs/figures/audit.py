"""The pictures of the audit page, from what `python -m benchmarks.audit` has stored.

python docs/figures/audit.py runs/benchmark_audit/fashion_mnist.json
"""

import json
import pathlib
import sys

import matplotlib

from jaxunlearn.experiments.drawing import STYLE
from jaxunlearn.experiments.lab_report import closer_is_not_forgotten

# The report's light colours; an image on a page cannot see the page's own.
LIGHT = {
    "paper": "#ffffff", "ink": "#16202c", "muted": "#5b6776", "line": "#e3e7ec",
    "method": "#2a62c9", "noop": "#b8501a", "retrain": "#0f7a5c", "band": "#dcebe7",
}  # fmt: skip
IMAGES = pathlib.Path(__file__).parents[1] / "images"

if __name__ == "__main__":
    records = json.loads(pathlib.Path(sys.argv[1]).read_text())
    for request in ("random", "vulnerable"):
        some = [record for record in records if record["request"] == request]
        with matplotlib.rc_context(STYLE):
            picture = closer_is_not_forgotten(some, request)
        for name, colour in LIGHT.items():
            picture = picture.replace(f"var(--{name})", colour)
        picture = picture.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        background = '<rect width="100%" height="100%" fill="#ffffff"/>'
        end = picture.index(">") + 1
        (IMAGES / f"closer_{request}.svg").write_text(picture[:end] + background + picture[end:])
