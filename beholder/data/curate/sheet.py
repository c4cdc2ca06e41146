"""Contact sheets: small pictures in rows, each with a line below it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from beholder.core.decode import Unreadable
from beholder.core.images import Images

TILE, LINE, COLUMNS = 144, 14, 6
LETTERS = 24  # per line, about the width of a tile


def contact_sheet(images: Images, rows: Sequence[int], captions: Sequence[str]) -> Image.Image:
    """Pictures of these rows, `COLUMNS` beside each other; what cannot be read stays white."""
    height = TILE + 2 * LINE
    lines = max(1, -(-len(rows) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * TILE, lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        left, top = number % COLUMNS * TILE, number // COLUMNS * height
        try:
            sheet.paste(tile(images.read(row)), (left + 2, top + 2))
        except Unreadable:
            caption = f"cannot be read: {caption}"
        text = caption[:LETTERS] + "\n" + caption[LETTERS : 2 * LETTERS]
        draw.text((left + 2, top + TILE), text, fill="black", spacing=1)
    return sheet


def tile(image: np.ndarray) -> Image.Image:
    """`image` uint8 [H, W, 3] within a tile; small pictures are enlarged."""
    picture = Image.fromarray(image)
    scale = (TILE - 4) / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    method = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC
    return picture.resize((size[0], size[1]), method)
