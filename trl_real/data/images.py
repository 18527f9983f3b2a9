"""Images of a row, in the columns `image` and `images` of TRL's trainers: as PIL images, data URLs and digests."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from trl_real.errors import TrlRealError


IMAGE_COLUMNS = ("image", "images")


def images_of(batch: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    """
    Return the images of each row of a batch, as `datasets` gives them; rows of a batch without such columns have none.

    Args:
        batch: Columns; `image` holds one image or None, `images` a list of images or None.
    """
    n_rows = len(next(iter(batch.values()), ()))
    one = batch.get("image", [None] * n_rows)
    several = batch.get("images", [None] * n_rows)
    return [
        [*(images or ()), *([image] if image is not None else [])] for image, images in zip(one, several, strict=True)
    ]


def as_image(value: Any) -> Any:
    """
    Return a PIL image, given one or what a column holds with `decode=False`. Nothing is fetched.

    Raises:
        TrlRealError: If the value cannot be read as an image, such as a web address.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return value
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    try:
        source: Any = io.BytesIO(content) if content is not None else path
        return Image.open(source)
    except (OSError, UnidentifiedImageError, AttributeError, TypeError, ValueError) as error:
        shown = repr(path)[:100] if content is None else f"{len(content)} bytes"
        raise TrlRealError(
            f"An image is {shown}, which cannot be read: {type(error).__name__}. Images are not fetched; load files "
            "into the column: dataset.cast_column('images', List(Image()))."
        ) from error


def data_url(value: Any) -> str:
    """Return an image as a `data:` URL: the bytes of its file where they are known, else as PNG."""
    from datasets.features.image import image_to_bytes
    from PIL import Image

    content = value.get("bytes") if isinstance(value, Mapping) else None
    content = image_to_bytes(as_image(value)) if content is None else content
    kind = as_image({"bytes": content}).format
    mime = Image.MIME.get(kind or "", "")
    if mime not in ("image/png", "image/jpeg", "image/webp", "image/gif"):
        return data_url(_as_png(as_image({"bytes": content})))
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def digests_of(images: Sequence[Any]) -> list[str]:
    """Return a digest of what each image shows, whatever its file format: size, mode and pixels."""
    found = ((repr((image.size, image.mode)), image.tobytes()) for image in map(as_image, images))
    return [hashlib.sha256(shape.encode() + pixels).hexdigest()[:32] for shape, pixels in found]


def refuse_images(batch: Mapping[str, Sequence[Any]], judge: str) -> None:
    """Raise `TrlRealError` if a row has an image, which the judge would not see."""
    if any(images_of(batch)):
        column = next(name for name in IMAGE_COLUMNS if name in batch)
        raise TrlRealError(
            f"{judge} reads texts, and rows have images in the column {column!r}. Ask a model that sees them: "
            f"ChatJudge(…, base_url='…'), or judge the texts alone: dataset.remove_columns({column!r})."
        )


def with_placeholders(messages: Sequence[Mapping[str, Any]], n_images: int) -> list[dict[str, Any]]:
    """
    Return messages whose contents are lists of parts, as processors take them; as in TRL, the images go before the
    text of the first message of a user, unless the messages say where.

    Raises:
        TrlRealError: If the messages have places for another number of images.
    """
    given = [{**message, "content": _parts(message.get("content"))} for message in messages]
    places = [part for message in given for part in message["content"] if part.get("type") == "image"]
    first = next((message for message in given if message.get("role") == "user"), None)
    if not places and first is not None:
        first["content"] = [*({"type": "image"} for _ in range(n_images)), *first["content"]]
    elif len(places) != n_images:
        raise TrlRealError(f"A row has {n_images} images, and its messages have places for {len(places)}.")
    return given


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [{name: value for name, value in part.items() if value is not None} for part in content]


def _as_png(image: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    image.convert("RGBA").save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}
