"""What a file is that is no checkpoint, in a sentence that says what to do next.

Downloads that went wrong, archives around a checkpoint, models of other programs, swapped arguments: each has a
beginning that tells. Only the beginning is looked at, and nothing is opened beside the file.
"""

from __future__ import annotations

import codecs
import re

_LOOKED_AT = 4096
_UNPACK = "unpack it and give the file inside"
_AGAIN = "download the file itself again (the address may need a login, or lead to a page with a button)"

# (start, at offset, what it is and what to do)
_MAGIC: tuple[tuple[bytes, int, str], ...] = (
    (b"\x1f\x8b", 0, f"a gzip file: {_UNPACK}"),
    (b"BZh", 0, f"a bzip2 file: {_UNPACK}"),
    (b"\xfd7zXZ\x00", 0, f"an xz file: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", 0, f"a zstd file: {_UNPACK}"),
    (b"\x04\x22\x4d\x18", 0, f"an lz4 file: {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", 0, f"a 7-Zip archive: {_UNPACK}"),
    (b"Rar!\x1a\x07", 0, f"a RAR archive: {_UNPACK}"),
    (b"ustar", 257, f"a tar archive: {_UNPACK}"),
    (
        b"TFL3",
        4,
        "a TensorFlow Lite model: it holds a program, not a checkpoint; give the checkpoint of the training",
    ),
    (b"GGUF", 0, "a GGUF file of a language model, not a detectron2 checkpoint"),
    (b"\x89PNG", 0, "a PNG picture: pictures go to --input"),
    (b"\xff\xd8\xff", 0, "a JPEG picture: pictures go to --input"),
    (b"%PDF", 0, "a PDF document, not a checkpoint"),
    (b"\x7fELF", 0, "a program, not a checkpoint"),
    (
        b"\x93NUMPY",
        0,
        "one numpy array (.npy), not a checkpoint; a checkpoint has a name for every tensor",
    ),
    (
        b"version https://git-lfs",
        0,
        "a Git LFS pointer, not the file itself: run `git lfs pull` in that repository",
    ),
    (
        b"oid sha256:",
        0,
        "a Git LFS pointer, not the file itself: run `git lfs pull` in that repository",
    ),
)
_ONNX = re.compile(rb"\x08[\x01-\x10](?:\x12.{1,40}|\x1a.{1,10}|:)", re.DOTALL)
_PRODUCER = re.compile(rb"pytorch|onnx|tf2onnx|caffe2|keras2onnx|skl2onnx|ai\.onnx", re.IGNORECASE)
_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_YAML_KEY = re.compile(r"^\s*(?:[A-Za-z_][\w.-]*|_BASE_)\s*:(?:\s|$)", re.MULTILINE)


def kind_of_file(head: bytes) -> str | None:
    """What a file with this beginning is and what to do with it, or None where it is not known.

    Args:
        head: the first bytes, some thousand.
    """
    head = head[:_LOOKED_AT]
    for start, offset, what in _MAGIC:
        if head[offset : offset + len(start)] == start:
            return what
    if not head.strip(b"\x00"):
        return f"all zeros: an interrupted download or copy; {_AGAIN}"
    if _ONNX.match(head) and _PRODUCER.search(head[:512]):
        return "an ONNX model: it holds a program, not a checkpoint; give the .pth that it was exported from"
    if b"saved_model_schema_version" in head or b"\x12\x05serve" in head[:64]:
        return "a TensorFlow SavedModel: it holds a program, not a checkpoint; give the checkpoint of the training"
    return _kind_of_text(head)


def kind_of_no_config(head: bytes) -> str | None:
    """What a file with this beginning is, where a YAML configuration is expected, and what to do; None for UTF-8 text.

    Args:
        head: the first bytes, some thousand.
    """
    head = head[:_LOOKED_AT]
    found = decoded(head)
    if found and found[1] == "UTF-8":
        what = kind_of_file(head) or ""
        return what if what.startswith(("a web page", "a Git LFS", "an XML")) else None
    if found:
        encoding = found[1] or "another encoding (GBK or Latin-1, perhaps)"
        return f"text in {encoding}: save it as UTF-8"
    if head[:1] == b"\x80" and b"CfgNode" in head:
        return (
            "a pickled configuration, which is not opened: where detectron2 is installed, load it and write "
            "open('config.yaml', 'w').write(cfg.dump())"
        )
    is_checkpoint = head[:1] == b"\x80" or head[8:9] == b"{" or head.startswith((b"PK\x03\x04", b"\x89HDF"))
    if is_checkpoint:
        return "a checkpoint, perhaps: it goes to --weights, and the YAML configuration to --config-file"
    return kind_of_file(head) or "not text, so not a YAML configuration"


def kind_of_archive(names: list[str]) -> str | None:
    """What a zip file with these entries is, if it is no torch checkpoint."""
    lower = [name.lower() for name in names]
    if "metadata.json" in lower and any(name.endswith(".weights.h5") for name in lower):
        return "a Keras model (.keras), which holds code and configuration: save its weights with model.save_weights"
    if any(name.endswith(("mar-inf/manifest.json",)) for name in lower):
        return "a TorchServe archive (.mar): unpack it (it is a zip) and give the .pth inside"
    ends = (".pth", ".pt", ".pkl", ".ckpt", ".safetensors", ".bin", ".h5")
    inside = [name for name in names if name.lower().endswith(ends) and not name.endswith("/data.pkl")]
    if inside:
        return f"a zip archive around {', '.join(map(repr, inside[:3]))[:200]}: {_UNPACK}"
    if any(name.endswith(".xml") for name in lower) and "[content_types].xml" in lower:
        return "an office document, not a checkpoint"
    return None


for _, _name in _ENCODINGS:
    codecs.lookup(_name)  # so that no file decides what is imported later


def decoded(head: bytes) -> tuple[str, str] | None:
    """Text of a beginning that is text, and its encoding ("" for one of the many that are not Unicode), or None."""
    for mark, name in _ENCODINGS:
        if head.startswith(mark):
            return _text(head[: len(head) // 4 * 4], name)
    text = _text(head, "UTF-8")
    if text is None and len(head) >= 8 and not _CONTROL.search(head):
        ascii_part = sum(byte < 128 for byte in head) / len(head)
        text = (head.decode("latin-1"), "") if ascii_part >= 0.25 else None
    return text


def _text(head: bytes, encoding: str) -> tuple[str, str] | None:
    try:
        # a character may be cut where the beginning ends
        text = codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < _LOOKED_AT)
    except UnicodeDecodeError:
        return None
    printable = sum(c.isprintable() or c in "\r\n\t\ufeff" for c in text)
    return (text, encoding) if text.strip() and printable >= 0.97 * len(text) else None


def _kind_of_text(head: bytes) -> str | None:
    found = decoded(head)
    if found is None:
        return None
    text, _ = found
    start = text.lstrip("\ufeff \r\n\t")[:300].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in start:
        return f"a web page, not the file that the page offers: {_AGAIN}"
    if start.startswith("<"):
        return f"an XML document, perhaps a server's error message: {_AGAIN}"
    if start.startswith(("{", "[")):
        return f"JSON text, perhaps a server's error message or an annotation file, no checkpoint: {_AGAIN}"
    if _YAML_KEY.search(text):
        return "YAML text, so a configuration: it goes to --config-file, and the checkpoint (.pth, .pkl) to --weights"
    if start.startswith("http://") or start.startswith("https://"):
        return "a text with an address: give the address itself to --weights"
    return f"text ({text.strip()[:40]!r} ...), no checkpoint: {_AGAIN}"
