"""`labels.html`: a page on which a person looks at the most suspicious labels and decides.

One file that opens from disk and fetches nothing; `review.html` beside this is its form.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from smr.data.decoding import upright
from smr.data.loader import Loader

# Larger than most networks' input, so that a person sees more than they do.
THUMBNAIL_SIDE = 160
# Of a JPEG; 500 of them stay under 5 MB in base64.
THUMBNAIL_BYTES = 6500


def page(
    index: np.ndarray,
    given: np.ndarray,
    probability: np.ndarray,
    loader: Loader,
    root: Path | None,
    run: str,
) -> str:
    """The page's text; it runs nothing but its own script, whatever classes and files are called.

    Args: index int64 [k], the images' positions in the training set, the most suspicious first;
    given int64 [k] their labels; probability float [k, classes]; root, the folder of the files;
    run, the run's folder, as correct_labels.py takes it.
    """
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = thumbnails(index, loader, root)
    items = [
        {
            "rank": rank,
            "index": int(i),
            "file": loader.files[i] if loader.files else "",
            "given": int(label),
            "p_given": round(float(p[label]), 4),
            "top": [[int(c), round(float(p[c]), 4)] for c in likeliest(p)],
            "jpeg": base64.b64encode(jpeg).decode(),
        }
        for rank, (i, label, p, jpeg) in enumerate(
            zip(index, given, probability, pictures, strict=True), start=1
        )
    ]
    content = {
        "run": run,
        "key": storage_key(loader),
        "classes": loader.class_names,
        "items": items,
    }
    # No text of the data ends the element that holds it.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("{{hash}}", digest).replace("{{data}}", data)


def likeliest(probability: np.ndarray) -> Sequence[int]:
    """The two likeliest of [classes], the first one first."""
    return np.argsort(-probability, kind="stable")[:2]


def storage_key(loader: Loader) -> str:
    """Under which a browser keeps the decisions: another one for other labels, names or files."""
    content = [loader.noisy_labels.tolist(), loader.class_names, loader.files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def thumbnails(index: np.ndarray, loader: Loader, root: Path | None) -> Iterator[bytes]:
    """JPEGs of the images, from their files in `root` where there are such."""
    for i in index:
        picture = None
        if loader.files and root:
            picture = from_file(root / loader.files[i])
        yield jpeg(picture or Image.fromarray(loader.thumbnails(np.array([i]))[0]))


def from_file(path: Path) -> Image.Image | None:
    """The whole image, upright; None where it is no file of its own."""
    try:
        return upright(path, 2 * THUMBNAIL_SIDE)
    except Exception:  # Pillow's decoders raise whatever they stumble over
        return None


def jpeg(picture: Image.Image) -> bytes:
    """At the best quality that keeps it small."""
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    for quality in (92, 80, 60, 35, 10):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        if file.tell() <= THUMBNAIL_BYTES:
            break
    return file.getvalue()
