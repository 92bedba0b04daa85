"""Zip files that are made while they are sent: nothing is compressed, and nothing is sought.

``zipfile`` of the standard library can write into a stream, too. It has no way to write a name that is not UTF-8, and
keeps an object of some 700 bytes for each file until the end; here it is what the end of the zip says of the file.
Source of the format: APPNOTE.TXT 6.3.10 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT), whose sections
are named below.
"""

from __future__ import annotations

import stat
import struct
import time
import zlib

_STORED = 0
_SIZES_FOLLOW, _UTF8 = 1 << 3, 1 << 11
_PLAIN, _ZIP64 = 20, 45
"""The version that is needed to read a zip (4.4.3)."""
_UNIX = 3 << 8
_MOST32, _MOST16 = 0xFFFFFFFF, 0xFFFF
_FIRST_YEAR, _LAST_YEAR = 1980, 2107
_LATEST = 2**31 - 1

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_TIME = struct.Struct("<HHBi")
_SIZES64 = struct.Struct("<HHQQ")
_DESCRIPTOR, _DESCRIPTOR64 = struct.Struct("<4sIII"), struct.Struct("<4sIQQ")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")


class Zip:
    """A zip. What its methods return has to be sent in their order: for each file :meth:`begin`, its content through
    :meth:`content`, and :meth:`finish`; at last :meth:`end`."""

    def __init__(self) -> None:
        self._offset = 0
        self._count = 0
        self._directory = bytearray()
        self._crc = 0
        self._size = 0
        self._entry: tuple[bytes, int, float, int, int, bool] = (b"", 0, 0.0, 0, 0, False)

    def folder(self, name: bytes, mode: int, mtime: float) -> bytes:
        """A folder, whose ``name`` has no slash at its end."""
        return self.begin(name + b"/", stat.S_IFDIR | mode, mtime, 0) + self.finish()

    def begin(self, name: bytes, mode: int, mtime: float, size: int) -> bytes:
        """What comes before a file of ``size`` bytes. ``mode`` has its kind, too."""
        flags = _SIZES_FOLLOW | (_UTF8 if _is_utf8(name) else 0)
        large = size >= _MOST32
        self._entry = name, mode, mtime, flags, self._offset, large
        self._crc = self._size = 0
        extra = _TIME.pack(0x5455, 5, 1, _seconds(mtime))
        size32 = 0
        if large:
            size32 = _MOST32
            extra += _SIZES64.pack(1, 16, 0, 0)
        version = _ZIP64 if large else _PLAIN
        head = _LOCAL.pack(b"PK\3\4", version, flags, _STORED, *_dos(mtime), 0, size32, size32, len(name), len(extra))
        return self._sent(head + name + extra)

    def content(self, data: bytes | memoryview) -> bytes | memoryview:
        """A part of a file."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._offset += len(data)
        return data

    def finish(self) -> bytes:
        """What comes after a file (4.3.9)."""
        name, mode, mtime, flags, offset, large = self._entry
        descriptor = (_DESCRIPTOR64 if large else _DESCRIPTOR).pack(b"PK\7\10", self._crc, self._size, self._size)
        wide = [*([self._size] * 2 if large else []), *([offset] if offset >= _MOST32 else [])]
        extra = _TIME.pack(0x5455, 5, 1, _seconds(mtime))
        if wide:
            extra += struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide)
        size32 = _MOST32 if large else self._size
        outside = (mode << 16) | (0x10 if stat.S_ISDIR(mode) else 0)
        version = _ZIP64 if wide else _PLAIN
        self._directory += _CENTRAL.pack(
            b"PK\1\2",
            _UNIX | version,
            version,
            flags,
            _STORED,
            *_dos(mtime),
            self._crc,
            size32,
            size32,
            len(name),
            len(extra),
            0,
            0,
            0,
            outside,
            min(offset, _MOST32),
        )
        self._directory += name + extra
        self._count += 1
        return self._sent(descriptor)

    def end(self) -> bytes:
        """The end, which says what is in the zip, and where."""
        begin, size = self._offset, len(self._directory)
        tail = b""
        if self._count >= _MOST16 or size >= _MOST32 or begin >= _MOST32:
            version = _UNIX | _ZIP64
            counts = (self._count, self._count, size, begin)
            tail += _END64.pack(b"PK\6\6", _END64.size - 12, version, _ZIP64, 0, 0, *counts)
            tail += _LOCATOR.pack(b"PK\6\7", 0, begin + size, 1)
        count = min(self._count, _MOST16)
        tail += _END.pack(b"PK\5\6", 0, 0, count, count, min(size, _MOST32), min(begin, _MOST32), 0)
        return bytes(self._directory) + tail

    def _sent(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _seconds(mtime: float) -> int:
    return int(min(max(mtime, 0), _LATEST))


def _dos(mtime: float) -> tuple[int, int]:
    """The time and the date, in UTC, as DOS has them (4.4.6); the exact time is in the extra field 0x5455."""
    when = time.gmtime(_seconds(mtime))
    year = min(max(when.tm_year, _FIRST_YEAR), _LAST_YEAR)
    month, day = (when.tm_mon, when.tm_mday) if when.tm_year >= _FIRST_YEAR else (1, 1)
    clock = when.tm_hour << 11 | when.tm_min << 5 | when.tm_sec // 2
    return clock, (year - _FIRST_YEAR) << 9 | month << 5 | day
