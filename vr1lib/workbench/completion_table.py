"""Pictures of completions for a table in W&B."""

from PIL import Image

from vr1lib.records import Problem, RequestError, open_image

THUMBNAIL_PIXELS = 128  # longest side of a picture in a W&B table


def thumbnail(problem: Problem) -> Image.Image | None:
    """The problem's pictures side by side, each at most THUMBNAIL_PIXELS; None without readable pictures."""
    pictures = []
    for path in problem.images:
        try:
            picture = open_image(path)
        except RequestError:
            continue
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        pictures.append(picture)
    if not pictures:
        return None
    strip = Image.new("RGB", (sum(item.width for item in pictures), max(item.height for item in pictures)), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip
