"""Images that people hand in, so that recipes may look at them."""

from collections.abc import Mapping

from sidecar.errors import InvalidInput

IMAGE_LIMIT_BYTES = 32 << 20
"""Largest image that is taken: a photograph of 50 megapixels as JPEG."""

_KINDS: Mapping[bytes, str] = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
"""How files of a kind begin; WebP is told by two places."""


def image_media_type(data: bytes) -> str:
    """Return what kind of image a file is, by its first bytes; the worker reads the rest before use.

    Raises:
        InvalidInput: It is empty, too large, or of no kind that the worker reads.

    Example:
        >>> image_media_type(b"GIF89a...")
        'image/gif'
    """
    if not 0 < len(data) <= IMAGE_LIMIT_BYTES:
        raise InvalidInput(
            f"image has {len(data)} bytes: use 1 to {IMAGE_LIMIT_BYTES}; a smaller copy will do, for models "
            "look at a few hundred pixels"
        )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for start, kind in _KINDS.items():
        if data.startswith(start):
            return kind
    raise InvalidInput(
        f"image begins with {data[:8]!r}, as no image does: use PNG, JPEG, WebP, GIF, BMP or TIFF"
    )
