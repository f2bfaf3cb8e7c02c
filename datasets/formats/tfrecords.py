"""Records of TensorFlow, read without it: a length, a checksum, the content, a checksum; the content is an Example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gtp_vision.core.errors import GtpVisionError, first_line
from gtp_vision.core.extras import importing, optional

_WHAT = ("rlds", "a file of TensorFlow's records")
descriptor_pb2 = optional("google.protobuf.descriptor_pb2", *_WHAT)
descriptor_pool = optional("google.protobuf.descriptor_pool", *_WHAT)
message_factory = optional("google.protobuf.message_factory", *_WHAT)
message = optional("google.protobuf.message", *_WHAT)


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the byte offsets and contents of a file's records, whose checksums fit."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while (offset := file.tell()) < size:
            head = file.read(12)
            length = int.from_bytes(head[:8], "little")
            is_whole = len(head) == 12 and masked(head[:8]) == int.from_bytes(head[8:], "little")
            if not is_whole or offset + 16 + length > size:
                raise GtpVisionError(f"{path} is truncated or damaged at byte {offset}; copy it again")
            content, check = file.read(length), file.read(4)
            if masked(content) != int.from_bytes(check, "little"):
                raise GtpVisionError(f"{path} is damaged in the record at byte {offset}; copy it again")
            yield offset, content


def masked(content: bytes) -> int:
    """Return TFRecord's masked CRC-32C."""
    with importing(*_WHAT):
        import google_crc32c  # only here: no other format needs it

    value = google_crc32c.value(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def features(content: bytes, place: str) -> dict[str, Any]:
    """Return the lists of an Example by their names: `bytes_list`, `float_list` or `int64_list`, the oneof `kind`."""
    example = message_class()()
    try:
        example.ParseFromString(content)
    except message.DecodeError as error:
        raise GtpVisionError(f"{place} is not an Example ({first_line(error)}); copy the file again") from error
    return {entry.key: entry.value for entry in example.features.feature}


@cache
def message_class() -> Any:
    """Return the message tf.train.Example (tensorflow/core/example/example.proto); entries of its map are repeated."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="gtp_vision/example.proto", package="gtp_vision", syntax="proto3")

    def message(name: str, *members: tuple[str, int, bool, Sequence[str]], oneof: str | None = None) -> None:
        added = file.message_type.add(name=name)
        if oneof:
            added.oneof_decl.add(name=oneof)
        for number, (member, kind, is_repeated, of) in enumerate(members, 1):
            label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
            one = added.field.add(name=member, number=number, type=kind, label=label)
            if of:
                one.type_name = f".gtp_vision.{of[0]}"
            if oneof:
                one.oneof_index = 0

    message("BytesList", ("value", field.TYPE_BYTES, True, ()))
    message("FloatList", ("value", field.TYPE_FLOAT, True, ()))
    message("Int64List", ("value", field.TYPE_INT64, True, ()))
    kinds = ("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")
    message("Feature", *((name, field.TYPE_MESSAGE, False, (of,)) for name, of in kinds), oneof="kind")
    message("Entry", ("key", field.TYPE_STRING, False, ()), ("value", field.TYPE_MESSAGE, False, ("Feature",)))
    message("Features", ("feature", field.TYPE_MESSAGE, True, ("Entry",)))
    message("Example", ("features", field.TYPE_MESSAGE, False, ("Features",)))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gtp_vision.Example"))
