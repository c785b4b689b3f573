"""The picture files that a data set names: found beside it, looked into, opened when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from milora.data.form import RowError
from milora.errors import MiloraError
from milora.models.pictures import PLACEHOLDER

if TYPE_CHECKING:
    from PIL.Image import Image


def picture_folder(dataset: str | Path, image_folder: str | Path | None) -> Path:
    """The folder that a data set's pictures lie in: the one that is named, else that of its own file.

    Raises:
        MiloraError: it does not exist.
    """
    if image_folder is not None:
        folder = Path(image_folder).expanduser()
        if not folder.is_dir():
            raise MiloraError(f"image_folder: got {folder}, which does not exist or is no folder")
        return folder
    own = Path(dataset).expanduser()
    return own if own.is_dir() else own.parent


def check_picture(folder: Path, name: str) -> None:
    """Look at the head of a picture file.

    Raises:
        RowError: it is missing, or is no picture.
    """
    try:
        _opened(folder / name).close()
    except FileNotFoundError as error:
        raise RowError(f"image {name!r}: no such file in {folder} (image_folder)") from error
    except (OSError, ValueError) as error:
        raise RowError(f"image {name!r} in {folder}: cannot be read as a picture") from error


def open_picture(file: Path) -> Image:
    """Read a whole picture.

    Raises:
        MiloraError: it is missing, broken or cut off.
    """
    try:
        with _opened(file) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # PIL reports a broken PNG as a SyntaxError
        raise MiloraError(f"image {file}: cannot be read ({str(error).splitlines()[0]})") from error


def check_placeholders(texts: list[str], has_picture: bool) -> None:
    """A row with a picture names it once, in its first question; one without does not.

    Args:
        texts: the questions and answers in their order.

    Raises:
        RowError: it does otherwise.
    """
    counts = [text.count(PLACEHOLDER) for text in texts]
    wanted = int(has_picture)
    if sum(counts) != wanted:
        what = "an image" if has_picture else "no image"
        raise RowError(f"got {sum(counts)} {PLACEHOLDER} in the conversation, allowed {wanted} with {what}")
    if counts[0] != wanted:
        raise RowError(f"got {PLACEHOLDER} after the first question, allowed in it")


def _opened(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MiloraError("pictures: Pillow is not installed (pip install 'milora[vision]')") from error
    return Image.open(file)
