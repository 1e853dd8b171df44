"""Reading image files as detectron2 does: with Pillow, turned upright, as 8-bit RGB, BGR or grey.

Source: detectron2/data/detection_utils.py at 02b5c4e2.
"""

import io
import warnings
from os import PathLike

import numpy as np
from PIL import Image, UnidentifiedImageError

from weights.errors import UserError

# Pillow itself refuses more than this (twice its MAX_IMAGE_PIXELS): 537 MB of RGB.
_MAX_PIXELS = 178_956_970

_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError, ValueError):
    """An image that detectron2's predictor could not use either. The message says why."""


def read_image(
    source: str | PathLike[str] | bytes, format: str = "BGR", max_pixels: int = _MAX_PIXELS
) -> np.ndarray:
    """Read an image file (path, or its bytes) into uint8 `[H,W,3]` ("BGR", "RGB") or `[H,W,1]` ("L").

    The EXIF orientation is applied, then Pillow converts whatever the file holds: grey is repeated, alpha
    is dropped (not blended), palettes are looked up, CMYK is converted without profile, 16 bits become 8 in
    Pillow's way; of an animation the first frame is taken.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: from opening the path.
        ImageError: not a readable image, a truncated one, one with more than `max_pixels` (found in its header,
            before decoding), or an unknown `format`. The message starts with the path.

    Source: `read_image`, detectron2/data/detection_utils.py.
    """
    if format not in ("BGR", "RGB", "L"):
        raise ImageError(f'image format must be "BGR", "RGB" or "L", got {format!r}')
    name = "image" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        data = source
    else:
        with open(source, "rb") as file:
            data = file.read()
    if not data:
        raise ImageError(f"{name}: the file is empty")
    pixels = _decode(data, name, "L" if format == "L" else "RGB", max_pixels)
    if format == "L":
        return pixels[:, :, np.newaxis]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if format == "BGR" else pixels


def _decode(data: bytes, name: str, mode: str, max_pixels: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Our own limit decides; Pillow warns from half of its limit on.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
                if width * height <= max_pixels:
                    return np.array(_upright(picture).convert(mode))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: cannot be read as an image (no format that Pillow knows)") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ImageError(f"{name}: cannot be read as an image ({error or type(error).__name__})") from error
    raise ImageError(
        f"{name}: {width}x{height} pixels are more than the limit of {max_pixels}; "
        "shrink the image or raise max_pixels"
    )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, about odd tags
            orientation = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data: detectron2 takes the image as it is
        return picture
    # Whatever equals one of these numbers counts, a fraction or a float, too.
    method = _UPRIGHT.get(orientation or 0)
    return picture if method is None else picture.transpose(method)
