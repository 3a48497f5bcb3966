"""The photographs of the demo: from a folder, or drawn at the size of camera pictures."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
WIDTH, HEIGHT = 4000, 3000
"""Size of a drawn picture in pixels: 12 megapixels, like a phone's."""


def find_photographs(folder: Path) -> list[Path]:
    """Returns the photographs in a folder, by name; raises `ValueError` if there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    found = sorted(path.resolve() for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"{folder} has no photographs in it ({', '.join(sorted(SUFFIXES))}).")
    return found


def draw_photographs(folder: Path, count: int = 10) -> list[Path]:
    """Draws `count` pictures into a folder. Each takes about half a second."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photograph-{number:02}.jpg" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        draw_photograph(number).save(path, quality=90)
    return paths


def draw_photograph(number: int) -> Image.Image:
    """Returns a picture with gradients, edges and grain, so that decoding and resampling take realistic time."""
    choose = random.Random(number)
    size = (WIDTH, HEIGHT)
    slope = Image.linear_gradient("L").rotate(choose.randrange(360)).resize(size, Image.Resampling.BICUBIC)
    light = Image.radial_gradient("L").rotate(choose.randrange(360)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.effect_noise((WIDTH // 2, HEIGHT // 2), 60).resize(size)
    bands = [Image.blend(base, grain, 0.2) for base in (slope, light, Image.blend(slope, light, 0.5))]
    choose.shuffle(bands)
    picture = Image.merge("RGB", bands)
    draw = ImageDraw.Draw(picture)
    for _ in range(300):
        left, top, side = choose.randrange(WIDTH), choose.randrange(HEIGHT), choose.randrange(20, 300)
        colour = (choose.randrange(256), choose.randrange(256), choose.randrange(256))
        draw.ellipse((left, top, left + side, top + side), fill=colour)
    return picture
