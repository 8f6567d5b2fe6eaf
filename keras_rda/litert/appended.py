"""What follows the FlatBuffer in a LiteRT file: a ZIP archive of the files that its metadata name, labels and such."""

import io
import struct
import zipfile

from keras_rda.litert import flatbuffer

_END = struct.Struct("<4s4H2LH")  # of the archive: where its directory is, and how long
_ENTRY = 46  # bytes of an entry of the directory, before its name
_OFFSET = 42  # in them: where the member is


def split(content, model):
    """Divide the content of a LiteRT file into the FlatBuffer and the ZIP archive behind it, which may be empty.

    Args:
        content: Of a file that was checked.
        model: Its `ModelT`.

    Raises:
        ValueError: something else follows the FlatBuffer.
    """
    start = _start(content)
    body, archive = content[:start], content[start:]
    if not _ends_with(body, model):
        raise ValueError(
            "The file has content behind the FlatBuffer that is no ZIP archive of associated files: it would be lost. "
            "Take it off, and append it to the smaller file."
        )
    return body, archive


def join(body, archive, before):
    """A FlatBuffer with an archive behind it, which is the same byte for byte but for where its members are.

    Args:
        body, archive: Contents.
        before: Bytes of the FlatBuffer that it followed: some archives count from the start of the file.
    """
    if not archive:
        return body
    end, entries, size, offset = _end(archive)
    if before + end - size != offset:
        return body + archive  # they count from the start of the archive
    shift, archive = len(body) - before, bytearray(archive)
    struct.pack_into("<L", archive, end + 16, offset + shift)
    place = end - size
    for _ in range(entries):
        name, extra, comment = struct.unpack_from("<3H", archive, place + 28)
        (member,) = struct.unpack_from("<L", archive, place + _OFFSET)
        struct.pack_into("<L", archive, place + _OFFSET, member + shift)
        place += _ENTRY + name + extra + comment
    return body + bytes(archive)


def _start(content):
    """Where the archive begins; the length of the content if there is none."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return len(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            end, _, size, _ = _end(content)
        return min((member.header_offset for member in members), default=end - size)
    except (zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"The ZIP archive of associated files behind the FlatBuffer is damaged: {error}.") from error


def _end(content):
    """Of an archive: where its end record is, the number of members, bytes and place of its directory."""
    place = content.rindex(b"PK\x05\x06")
    _, _, _, _, entries, size, offset, _ = _END.unpack_from(content, place)
    if 0xFFFFFFFF in (size, offset) or entries == 0xFFFF:
        raise ValueError("The archive of associated files behind the FlatBuffer is a ZIP64: not supported.")
    return place, entries, size, offset


def _ends_with(body, model):
    """Whether nothing but zeros, which may be padding, follows a FlatBuffer: without the byte before it is another.

    A number, a vector or a string ends in that byte; what is behind the FlatBuffer can be cut without harm.
    """
    try:
        return flatbuffer.pack(flatbuffer.read(body.rstrip(b"\0")[:-1])) != flatbuffer.pack(model)
    except ValueError:
        return True
