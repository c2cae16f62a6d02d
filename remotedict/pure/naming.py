"""Names: which keys and folders are allowed, and where each blob lives."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import xxhash

from remotedict.errors import CredentialsError, InvalidKeyError, InvalidNameError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A file of this name can't be made on Windows, whatever its extension.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))]
)
_ESCAPED_MAX = 120  # leaves room for a folder, a root path and the generation in 260 (Windows)
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPES = [chr(b) if b in _PLAIN else f"={b:02X}" for b in range(256)]
_BETWEEN = "\udc00"
_FEW = 64
_ODD = re.compile(rf"[^A-Za-z0-9_{_BETWEEN}-]")
_ODD_EDGE = re.compile(r"\.\.|^[.~ ]|[. ]$")
_SPECIAL = re.compile(r'[<>:"|?*#%]')
_FOLDER_MAX = 200
_SECRET = re.compile(r"(?i)\b(AccountKey|SharedAccessSignature|sig)=")
_NAME = r"[0-9]{12,20}-[0-9a-f]{32}"
REFERENCE = rf"[spcl]:{_NAME}|v:[A-Za-z0-9_=-]+/{_NAME}"
"""What names an immutable blob; it can't lead out of its folder. See `Layout`."""
_REFERENCE = re.compile(REFERENCE)
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")


def check_key(key: Any) -> str:
    """Return `key` if it may name an entry, else raise InvalidKeyError."""
    if not isinstance(key, str):
        shown = f": {key!r:.80}" if isinstance(key, int | float | bytes | None) else ""
        msg = f"a key must be a str, not {type(key).__name__}{shown}"
        raise InvalidKeyError(msg)
    if not key:
        msg = "a key must not be empty"
        raise InvalidKeyError(msg)
    try:
        key.encode()
    except UnicodeEncodeError as exc:
        msg = f"key {key!r} holds a lone surrogate (position {exc.start}) and can't be stored"
        raise InvalidKeyError(msg) from None
    # A subclass of str (np.str_, an Enum) is stored, and found again, as the plain text it is.
    return str.__str__(key)


def refuse_secret(text: Any) -> None:
    """Raise CredentialsError if `text`, which should be a name, looks like a credential.

    It was given as the wrong argument; it must not end up in a message, a repr or a file name.
    """
    if isinstance(text, str) and _SECRET.search(text):
        msg = (
            "a name, path or URL looks like a connection string or a SAS (it isn't shown here); "
            "AzureDictionary takes a connection string first, and a SAS as credential="
        )
        raise CredentialsError(msg)


def check_folder(folder: Any) -> str:
    """Return `folder` if a dictionary may have this name, else raise InvalidNameError."""
    refuse_secret(folder)
    if not isinstance(folder, str):
        msg = f"a folder name must be a str, not {type(folder).__name__}"
        raise InvalidNameError(msg)
    if not folder:
        why = "is empty"
    elif folder.casefold() == "index":
        why = "is reserved: the index blobs of all folders live there"
    elif "/" in folder or "\\" in folder:
        why = "holds a slash; one dictionary is one folder, without sub-folders"
    elif _ODD_EDGE.search(folder):
        why = "begins or ends with '.', '~' or a space, or holds '..'"
    elif _SPECIAL.search(folder):
        why = "holds a character that a file system or a URL treats specially"
    elif folder.split(".")[0].casefold() in _DEVICES:
        why = "is the name of a device on Windows"
    elif len(folder) > _FOLDER_MAX:
        why = f"is longer than {_FOLDER_MAX} characters"
    elif not folder.isprintable():
        why = "holds a character that can't be shown"
    else:
        return folder
    msg = f"folder name {folder!r:.80} can't be used: it {why}"
    raise InvalidNameError(msg)


def check_container(name: Any) -> str:
    """Return `name` if Azure can have a container of it, else raise InvalidNameError."""
    refuse_secret(name)
    if isinstance(name, str) and (_CONTAINER.fullmatch(name) or name in {"$root", "$web"}):
        return name
    if name is None:
        msg = "the name of the container is missing: container_name='my-container', say"
        raise InvalidNameError(msg)
    msg = (
        f"container name {name!r:.80} can't be used: it must have 3 to 63 lower-case letters, "
        "digits and single hyphens, and begin and end with a letter or digit"
    )
    raise InvalidNameError(msg)


def escape(key: str) -> str:
    """Return the form in which `key` appears in blob names; it is never parsed back.

    >>> escape("run 1/loss")
    'run=201=2Floss'
    """
    raw = key.encode()
    return _fitted("".join([_ESCAPES[b] for b in raw]), raw)


def escape_all(keys: Sequence[str]) -> list[str]:
    """Return the forms in which many keys appear in blob names."""
    # No key has a lone surrogate: it may stand between them.
    joined = _BETWEEN.join(keys)
    odd = {*_ODD.findall(joined)}
    if len(odd) > _FEW:
        return [escape(key) for key in keys]
    for char in sorted(odd, key="=".__ne__):  # it is what escapes begin with
        joined = joined.replace(char, "".join([_ESCAPES[b] for b in char.encode()]))
    return [
        text
        if len(text) <= _ESCAPED_MAX and text.lower() not in _DEVICES
        else _fitted(text, key.encode())
        for text, key in zip(joined.split(_BETWEEN), keys, strict=True)
    ]


def _fitted(text: str, raw: bytes) -> str:
    """Return an escaped key in a form that every store can have."""
    if text.lower() in _DEVICES:
        text = f"={raw[0]:02X}{text[1:]}"
    if len(text) > _ESCAPED_MAX:
        # "==" marks the cut: it can't arise from escaping.
        text = f"{text[: _ESCAPED_MAX - 34]}=={xxhash.xxh3_128_hexdigest(raw)}"
    return text


def unique(seq: int, uuid: bytes) -> str:
    """Return the last part of an immutable blob's name: ``<seq>-<uuid>``."""
    return f"{seq:012d}-{uuid.hex()}"


def born(blob: str) -> int:
    """Return the seq in an immutable blob's name or reference."""
    return int(re.split("[/:]", blob)[-1].split("-", 1)[0])


class Layout:
    """The paths of one dictionary's blobs in its container.

    Records name blobs by a *reference* that holds no folder: ``s:<seq>-<uuid>`` is a segment,
    ``p:…`` a pack, ``c:…`` a checkpoint, ``l:…`` a log, ``v:<escaped key>/<seq>-<uuid>`` a value
    of its own.

    >>> layout = Layout("runs")
    >>> layout.path("p:000000000007-ab")
    'runs/.packs/000000000007-ab'
    """

    kinds = MappingProxyType(
        {"v": "values", "p": "packs", "s": "segments", "c": "checkpoints", "l": "logs"}
    )

    def __init__(self, folder: str) -> None:
        self.folder = check_folder(folder)
        self.index = f"Index/{folder}/index"
        self._prefixes = {
            "s": f"Index/{folder}/segments/",
            "c": f"Index/{folder}/checkpoints/",
            "l": f"Index/{folder}/logs/",
            "p": f"{folder}/.packs/",
            "v": f"{folder}/",
        }
        self.prefixes = (f"Index/{folder}/", f"{folder}/")

    def path(self, reference: str) -> str:
        """Return the path of the blob that `reference` names."""
        kind, _, name = reference.partition(":")
        return self._prefixes[kind] + name

    def paths(self, references: Iterable[str]) -> list[str]:
        """Return the paths of blobs by their references; for "" that of the index."""
        prefixes, index = self._prefixes, self.index
        return [prefixes[ref[0]] + ref[2:] if ref else index for ref in references]

    def aside(self, unique: str) -> str:
        """Return the path under which a damaged index blob is kept."""
        return f"Index/{self.folder}/damaged/{unique}"

    def reference(self, path: str) -> str | None:
        """Return the reference of the blob at `path`; None if no blob of ours has such a name."""
        for kind, prefix in self._prefixes.items():
            if path.startswith(prefix):
                reference = f"{kind}:{path[len(prefix) :]}"
                if _REFERENCE.fullmatch(reference):
                    return reference
        return None

    def lock(self, key: str) -> str:
        """Return the path of the blob whose lease guards `key`."""
        return f"Index/{self.folder}/locks/{xxhash.xxh3_128_hexdigest(key.encode())}"

    @property
    def commit_queue(self) -> str:
        """The path of the blob whose lease lines up the writers under contention."""
        return f"Index/{self.folder}/locks/.commit"
