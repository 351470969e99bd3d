"""`labels.html`: a page on which a person reviews the first label issues and decides.

One file that opens from disk and fetches nothing; `review_page.html` beside this is its template.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from smr.data.decoding import upright
from smr.data.loader import Loader
from smr.label_issues.scores import LabelIssues

# Larger than most networks' input; 500 JPEGs of so many bytes stay under 5 MB in base64.
THUMBNAIL_SIDE, THUMBNAIL_BYTES = 160, 6500
# Up to this side an image keeps its colors' full resolution: each pixel is seen.
SMALL_SIDE = 64


def page(
    issues: LabelIssues,
    loader: Loader,
    root: Path | None,
    run: str,
    count: int,
    duplicates: Mapping[int, str],
) -> str:
    """The page's text; it runs nothing but its own script, whatever classes and files are called.

    Args: root, the folder of the files; run, the run's folder, as correct_labels.py takes it;
    count, how many images; duplicates, position → a file of the same content and another label:
    these come first.
    """
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = sorted(issues.order, key=lambda row: issues.index[row] not in duplicates)
    items = []
    for row in rows[:count]:
        i, label, p = int(issues.index[row]), int(issues.labels[row]), issues.pred_probs[row]
        items.append(
            {
                "rank": int(issues.rank[row]),
                "index": i,
                "file": loader.files[i] if loader.files else "",
                "label": label,
                "p_label": round(float(p[label]), 4),
                "top": [[int(c), round(float(p[c]), 4)] for c in np.argsort(-p, kind="stable")[:2]],
                "jpeg": base64.b64encode(thumbnail(i, loader, root)).decode(),
                "duplicate": duplicates.get(i, ""),
            }
        )
    # Decisions belong to these labels, names and files: others have another key.
    content = [loader.noisy_labels.tolist(), loader.class_names, loader.files]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    shown = {"run": run, "key": key, "classes": loader.class_names, "items": items}
    # No text of the data ends the element that contains it.
    data = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("{{hash}}", digest).replace("{{data}}", data)


def thumbnail(i: int, loader: Loader, root: Path | None) -> bytes:
    """A small JPEG of a training image, of its file if it has one; gray if it cannot be read."""
    try:
        picture = upright(root / loader.files[i], 2 * THUMBNAIL_SIDE)
    except Exception:  # it has no file of its own, or Pillow's decoders raise many types
        picture = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), "gray")
        with suppress(Exception):
            picture = Image.fromarray(loader.thumbnails(np.array([i]))[0])
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    small = max(picture.size) <= SMALL_SIDE
    picture = Image.fromarray(np.asarray(picture))  # without comments and other metadata
    for quality in (100, 92, 80, 60, 35, 10)[not small :]:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, subsampling=0 if small else 2)
        if file.tell() <= THUMBNAIL_BYTES:
            break
    return file.getvalue()
