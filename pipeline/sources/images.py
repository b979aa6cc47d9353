"""Reading one image or label plane of a source: whatever is wrong with it becomes a `BadImageError`."""

import numpy as np
from PIL import Image

from pipeline.sources import BadImageError, Concept, Row, check_path
from pipeline.sources.files import DamagedFileError, Files
from workers.batches import MAX_PIXELS, ImageError, load_image, open_image


def read_image(files: Files, row: Row, path: str) -> tuple[bytes, tuple[int, int]]:
    """Read the image of a row and decode it once, to be sure that it can be.

    Returns:
        The encoded bytes as they are in the source, and the image's height and width.

    Raises:
        BadImageError: it is missing, broken, no JPEG or PNG, or too large.
    """
    data = _read(files, row, path)
    try:
        image = load_image(open_image(data))
    except ImageError as error:
        raise BadImageError("broken", f"image {row.image!r}: {path} {error}") from error
    return data, (image.height, image.width)


def read_plane(
    files: Files, row: Row, path: str, size: tuple[int, int] | None, gray_is_label: bool = False
) -> np.ndarray:
    """Read a label plane: label = R + 256 * G.

    Args:
        files: where it is.
        row: the image it belongs to, for messages.
        path: the PNG.
        size: height and width it must have, or None where any will do.
        gray_is_label: whether a grayscale value or palette index is the label itself; otherwise palettes
            stand for their colors, and grayscale is refused where it is not 0.

    Returns:
        Label numbers, int32, `y x`; 0 is no label.

    Raises:
        BadImageError: it is missing, broken, no PNG, or of another size or kind.
    """
    data = _read(files, row, path)
    try:
        image = open_image(data, formats=("PNG",))
        if size is not None and image.size != size[::-1]:
            raise BadImageError(
                "size",
                f"image {row.image!r}: label plane {path} is {image.height} x {image.width} (height x "
                f"width), must be {size[0]} x {size[1]}; scale it by nearest neighbor",
            )
        return _labels(load_image(image), gray_is_label, deep=data[24] == 16)
    except ImageError as error:
        raise BadImageError("broken", f"image {row.image!r}: label plane {path} {error}") from error


def check_labels(row: Row, where: str, labels: np.ndarray, concepts: dict[int, Concept], listed: str) -> None:
    """Refuse label numbers that are no concept; 0 is none and always allowed.

    Raises:
        BadImageError: naming the image, where the number stands, and the list it lacks in.
    """
    unknown = [int(number) for number in np.unique(labels) if number and int(number) not in concepts]
    if unknown:
        numbers = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise BadImageError(
            "label",
            f"image {row.image!r}: {where} holds label {numbers}, which {listed} does not list; "
            "add it there or correct the label",
        )


def check_label_size(row: Row, height: int, width: int) -> None:
    """Refuse a label map of no or too many pixels.

    Raises:
        BadImageError: naming the image and the size.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise BadImageError(
            "size",
            f"image {row.image!r}: its label map is {height} x {width} pixels, must have 1 to {MAX_PIXELS}",
        )


def _read(files: Files, row: Row, path: str) -> bytes:
    if problem := check_path(path):
        raise BadImageError("row", f"image {row.image!r}: {problem}")
    try:
        return files.read(path)
    except FileNotFoundError as error:
        message = f"image {row.image!r}: {files.root} has no file {path}; add it or remove the row"
        raise BadImageError("missing", message) from error
    except DamagedFileError as error:
        raise BadImageError("broken", f"image {row.image!r}: {path} is damaged: {error}") from error


def _labels(image: Image.Image, gray_is_label: bool, deep: bool) -> np.ndarray:
    gray = image.mode in ("1", "L") or image.mode.startswith("I")
    if gray or (gray_is_label and image.mode == "P"):
        labels = np.asarray(image).astype(np.int32)
        if gray_is_label or not labels.any():
            return labels
    elif image.mode in ("RGB", "RGBA", "P") and not deep:
        # Widened first: 256 * G overflows the uint8 it is stored in.
        rgb = np.asarray(image.convert("RGBA")).astype(np.int32)
        return rgb[..., 0] + 256 * rgb[..., 1]
    bits = "16-bit" if deep else "8-bit"
    raise ImageError(f"is a {bits} PNG of mode {image.mode}, must be 8-bit RGB with label = R + 256 * G")
