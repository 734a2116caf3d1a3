"""A font in which every letter is a filled box, like Ahem of the Web Platform Tests: text looks the same everywhere.

Latin letters are 0.55 em wide, Chinese ones 1 em, spaces are empty; all fonts of a machine are left out of a picture.
"""

from __future__ import annotations

import struct

UNITS_PER_EM = 1000
ASCENT, DESCENT, HEIGHT = 800, -200, 700
NOTHING, LATIN, WIDE, SPACE, NO_WIDTH = range(5)
ADVANCES = {NOTHING: 550, LATIN: 550, WIDE: 1000, SPACE: 300, NO_WIDTH: 0}
# first and last code point, glyph
RANGES = (
    (0x20, 0x20, SPACE), (0x21, 0x9F, LATIN), (0xA0, 0xA0, SPACE), (0xA1, 0x1FFF, LATIN), (0x2000, 0x200A, SPACE),
    (0x200B, 0x200F, NO_WIDTH), (0x2010, 0x2027, LATIN), (0x2028, 0x202E, NO_WIDTH), (0x202F, 0x202F, SPACE),
    (0x2030, 0x2E7F, LATIN), (0x2E80, 0xA4CF, WIDE), (0xA4D0, 0xABFF, LATIN), (0xAC00, 0xD7AF, WIDE),
    (0xE000, 0xF8FF, LATIN), (0xF900, 0xFAFF, WIDE), (0xFB00, 0xFEFE, LATIN), (0xFF00, 0xFF60, WIDE),
    (0xFF61, 0xFFEF, LATIN), (0x10000, 0x1FFFF, LATIN), (0x20000, 0x3FFFF, WIDE),
)  # fmt: skip


def font() -> bytes:
    """A TrueType font (OpenType specification, sections of each table)."""
    glyphs = [_box(ADVANCES[glyph]) if glyph in (NOTHING, LATIN, WIDE) else b"" for glyph in ADVANCES]
    offsets = [sum(map(len, glyphs[:count])) for count in range(len(glyphs) + 1)]
    metrics = [(advance, 0) for advance in ADVANCES.values()]
    tables = {
        b"OS/2": struct.pack(
            ">HhHHH10hh10B4I4sHHHhhhHH2IhhHHH",
            4, 550, 400, 5, 0, *([0] * 10), 0, *([0] * 10), 0, 0, 0, 0, b"BOX ", 0x40, 0x20, 0xFFFF,
            ASCENT, DESCENT, 0, ASCENT, -DESCENT, 1, 0, 500, HEIGHT, 0, 0x20, 1,
        ),
        b"cmap": _cmap(),
        b"glyf": b"".join(glyphs),
        b"head": struct.pack(
            ">IIIIHHqqhhhhHHhhh",
            0x00010000, 0x00010000, 0, 0x5F0F3CF5, 0, UNITS_PER_EM, 0, 0, 0, 0, 1000, HEIGHT, 0, 8, 2, 0, 0,
        ),
        b"hhea": struct.pack(
            ">IhhhHhhhhhh4hhH",
            0x00010000, ASCENT, DESCENT, 0, 1000, 0, 0, 1000, 1, 0, 0, *([0] * 4), 0, len(metrics),
        ),
        b"hmtx": b"".join(struct.pack(">Hh", *one) for one in metrics),
        b"loca": b"".join(struct.pack(">H", offset // 2) for offset in offsets),
        b"maxp": struct.pack(">I14H", 0x00010000, len(glyphs), 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
        b"name": struct.pack(">HHH", 0, 0, 6),
        b"post": struct.pack(">IIhhIIIII", 0x00030000, 0, -100, 50, 0, 0, 0, 0, 0),
    }  # fmt: skip
    return _file(tables)


def _box(width: int) -> bytes:
    """A glyph of one contour: the box from the base line to HEIGHT, over its whole advance."""
    contour = struct.pack(">hhhhhHH4B", 1, 0, 0, width, HEIGHT, 3, 0, 1, 1, 1, 1)
    return contour + struct.pack(">4h4h", 0, 0, width, 0, 0, HEIGHT, 0, -HEIGHT) + b"\0\0"


def _cmap() -> bytes:
    """Subtable format 13: many code points have one glyph."""
    groups = b"".join(struct.pack(">III", *one) for one in RANGES)
    subtable = struct.pack(">HHIII", 13, 0, 16 + len(groups), 0, len(RANGES)) + groups
    return struct.pack(">HHHHI", 0, 1, 3, 10, 12) + subtable


def _file(tables: dict[bytes, bytes]) -> bytes:
    count = len(tables)
    power = 1 << (count.bit_length() - 1)
    head = struct.pack(">IHHHH", 0x00010000, count, power * 16, power.bit_length() - 1, (count - power) * 16)
    place = len(head) + 16 * count
    body = b""
    for tag, table in tables.items():
        padded = table + bytes(-len(table) % 4)
        checksum = sum(struct.unpack(f">{len(padded) // 4}I", padded)) & 0xFFFFFFFF
        head += struct.pack(">4sIII", tag, checksum, place + len(body), len(table))
        body += padded
    return head + body
