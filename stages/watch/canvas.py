"""Canvas: plain drawing on one frame, in points; drawn at twice the size, so that slanted lines and text are smooth."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
Colour = str | tuple[int, int, int]


class Canvas:
    """A white frame. Boxes are (x, y, width, height), from the left and the top."""

    def __init__(self, width: int, height: int):
        self._image = Image.new("RGB", (SCALE * width, SCALE * height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, content: str, size: int, colour: Colour, anchor: str = "la", bold: bool = False):
        """Words at a point; `anchor` is Pillow's: l, m, r and a (top), m (middle), s (baseline)."""
        self._draw.text((SCALE * x, SCALE * y), content, colour, _font(SCALE * size, bold), anchor)

    def width_of(self, content: str, size: int, bold: bool = False) -> float:
        """How wide `text` would be."""
        return _font(SCALE * size, bold).getlength(content) / SCALE

    def box(self, box: tuple[float, float, float, float], colour: Colour):
        """A rectangle; none where it is thinner than a dot."""
        x, y, width, height = box
        corners = [round(SCALE * end) for end in (x, y, x + width, y + height)]
        if corners[2] > corners[0] and corners[3] > corners[1]:
            self._draw.rectangle([*corners[:2], corners[2] - 1, corners[3] - 1], colour)

    def pill(self, box: tuple[float, float, float, float], colour: Colour):
        """A rectangle with round ends."""
        x, y, width, height = box
        corners = [SCALE * x, SCALE * y, SCALE * (x + width), SCALE * (y + height)]
        self._draw.rounded_rectangle(corners, SCALE * height / 2, colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour):
        """A disc around a point."""
        self._draw.ellipse(
            [SCALE * (x - radius), SCALE * (y - radius), SCALE * (x + radius), SCALE * (y + radius)], colour
        )

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float = 1.5):
        """A line through points; one point is a dot."""
        if len(points) == 1:
            self.disc(*points[0], width / 2, colour)
        self._draw.line([(SCALE * x, SCALE * y) for x, y in points], colour, round(SCALE * width), "curve")

    def cells(self, box: tuple[float, float, float, float], colours: NDArray[np.float64], tile: int = 1):
        """A grid of coloured cells, [rows, columns, 3] in 0..1, centred in the box and as large as it allows; with thin
        gaps after every `tile` of them."""
        x, y, width, height = box
        rows, columns, _ = colours.shape
        side = min(width / columns, height / rows)
        x, y = x + (width - side * columns) / 2, y + (height - side * rows) / 2
        size = (round(SCALE * side * columns), round(SCALE * side * rows))
        pixels = Image.fromarray((255 * np.clip(colours, 0, 1)).astype(np.uint8))
        self._image.paste(pixels.resize(size, Image.Resampling.NEAREST), (round(SCALE * x), round(SCALE * y)))
        if side * tile >= 6:
            for row in range(tile, rows, tile):
                self.line([(x, y + row * side), (x + side * columns, y + row * side)], "white", 0.5)
            for column in range(tile, columns, tile):
                self.line([(x + column * side, y), (x + column * side, y + side * rows)], "white", 0.5)

    def finished(self) -> Image.Image:
        """The frame at its own size."""
        width, height = self._image.size
        return self._image.resize((width // SCALE, height // SCALE), Image.Resampling.LANCZOS)


def write_gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    """Frames as a GIF that goes round, with one palette for all of them."""
    some = frames[:: max(1, len(frames) // 8)]
    width, height = some[0].size
    together = Image.new("RGB", (width, height * len(some)))
    for index, frame in enumerate(some):
        together.paste(frame, (0, index * height))
    palette = together.quantize(255, Image.Quantize.MAXCOVERAGE)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    reduced[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=reduced[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=True,
        disposal=1,
    )
    return file.getvalue()


@functools.cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
