"""Find the files that a path, a folder or a pattern names, and read their bytes."""

import hashlib
import json
import os
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from data.report import Tally
from data.unpack import unpack
from utils.errors import Mistake, UserError
from utils.files import user_path


@dataclass(frozen=True)
class File:
    """A regular file that can be read, as it was when it was found."""

    path: Path
    size: int
    modified: int
    """nanoseconds; the later one of when it was written and when its status changed, as tools set the former back"""
    identity: tuple
    """device and inode: the same for all names of a file"""


def find_files(typed: str, tally: Tally) -> list[File]:
    """The files of a path: a file, all files below a folder, or all that match a pattern; sorted by their paths.

    A path that exists is not a pattern. Each file counts once, whatever the number of its names. Hidden files, links to
    folders, special files and what may not be read are left out, except that a link or a hidden file that is typed in
    full is followed or read.

    Args:
        tally: counts what is left out.

    Raises:
        UserError: if there is no file to read.
    """
    # -- where to look: the path itself, or what matches the pattern
    pattern = user_path(typed)
    if _exists(pattern):
        starts = [pattern]
    else:
        starts = list(_matches(Path(pattern.anchor), pattern.relative_to(pattern.anchor).parts, tally))
    if typed.endswith("/"):
        starts = [start for start in starts if os.path.isdir(start)]
    if not starts:
        raise UserError(Mistake("data.path", typed, "a file, folder or glob that exists"))

    # -- all paths there; one that is hidden on one way and not on another is not hidden
    shown: set[Path] = set()
    hidden: set[Path] = set()
    walked: set[Path] = set()
    for start in starts:
        if not os.path.isdir(start):
            shown.add(start)
        elif start not in walked:
            for path, is_hidden in _walk(start, walked, tally):
                (hidden if is_hidden else shown).add(path)

    # -- the files among them
    files = files_at(shown | hidden, tally, hidden - shown)
    if not files:
        reasons = "; ".join(tally.report().lines()) or "the folder is empty"
        raise UserError(f"data.path: {typed} holds no file to read ({reasons})")
    return files


def files_at(paths: Iterable[Path], tally: Tally, hidden: Container[Path] = ()) -> list[File]:
    """The files at some paths, sorted by path, each one once.

    Args:
        tally: counts what is left out.
        hidden: paths among them that are left out.
    """
    files = []
    for path in sorted(paths):
        file = _file_at(path, path in hidden, tally)
        if file is not None:
            files.append(file)
    return _each_once(files, tally)


def _matches(folder: Path, parts: tuple[str, ...], tally: Tally) -> Iterator[Path]:
    """Paths in a folder that match the parts of a pattern. `**` stands for any number of folders."""
    if not parts or (parts[0] == "**" and len(parts) == 1):
        yield folder
    elif parts[0] == "**":
        rest = parts[1:]
        yield from _matches(folder, rest, tally)
        if rest[0] != "**":
            for path in _folders_below(folder, tally):
                yield from _matches(path, rest, tally)
    elif has_magic(parts[0]):
        for path in _entries(folder, tally):
            is_hidden = path.name.startswith(".") and not parts[0].startswith(".")
            if fnmatchcase(path.name, parts[0]) and not is_hidden and not _is_link_to_folder(path, tally):
                yield from _matches(path, parts[1:], tally)
    elif _exists(folder / parts[0]):
        yield from _matches(folder / parts[0], parts[1:], tally)


def _exists(path: Path) -> bool:
    """Whether there is something at a path, or its folder does not allow to find out."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):  # ValueError: the path holds a zero byte
        return False
    return True


def _folders_below(folder: Path, tally: Tally) -> Iterator[Path]:
    """All folders below a folder, except hidden ones."""
    stack = [folder]
    while stack:
        for path in _entries(stack.pop(), tally):
            if os.path.isdir(path) and not path.name.startswith(".") and not _is_link_to_folder(path, tally):
                yield path
                stack.append(path)


def _walk(start: Path, walked: set[Path], tally: Tally) -> Iterator[tuple[Path, bool]]:
    """All paths below a folder that are no folders, and whether they are hidden or in a hidden folder.

    Folders that are not hidden are added to `walked`.
    """
    stack = [(start, False)]
    while stack:
        folder, in_hidden = stack.pop()
        if not in_hidden:
            walked.add(folder)
        for path in _entries(folder, tally):
            is_hidden = in_hidden or path.name.startswith(".")
            if os.path.isdir(path) and not os.path.islink(path):
                stack.append((path, is_hidden))
            else:
                yield path, is_hidden


def _entries(folder: Path, tally: Tally) -> list[Path]:
    """What is in a folder; nothing if it is none, or may not be read."""
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except NotADirectoryError:
        return []
    except PermissionError:
        tally.leave_out("folder", "no permission", str(folder))
        return []
    except OSError as error:
        raise UserError(f"data.path: {folder} cannot be read ({error.strerror})") from error


def _is_link_to_folder(path: Path, tally: Tally) -> bool:
    """Whether a path is a link to a folder, which is left out."""
    is_link = os.path.islink(path) and os.path.isdir(path)
    if is_link:
        tally.leave_out("link", "to a folder, not followed", str(path))
    return is_link


def _file_at(path: Path, is_hidden: bool, tally: Tally) -> File | None:
    """The regular file at a path, through links; None if it is left out."""
    name = str(path)
    is_link = os.path.islink(path)
    unit = "link" if is_link else "file"
    try:
        status = path.stat()
    except PermissionError:
        tally.leave_out("file", "no permission", name)
        return None
    except OSError:  # a link to nothing or to itself, or a file that has just been deleted
        tally.leave_out(unit, "leads nowhere", name)
        return None

    size = 0 if is_link else status.st_size  # the bytes of a link's file are counted where the file is
    if stat.S_ISDIR(status.st_mode):
        tally.leave_out("link", "to a folder, not followed", name)
    elif not stat.S_ISREG(status.st_mode):
        tally.leave_out("special file", "a pipe, socket or device", name)
    elif is_hidden:
        tally.leave_out(unit, "hidden", name, size)
    elif not _may_read(path):
        tally.leave_out(unit, "no permission", name, size)
    else:
        inode = status.st_ino or name  # file systems without inodes give 0
        return File(path, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns), (status.st_dev, inode))
    return None


def _may_read(path: Path) -> bool:
    """Whether a regular file may be opened."""
    try:
        path.open("rb").close()
    except PermissionError:
        return False
    except OSError:  # reading it will say why
        return True
    return True


def _each_once(files: list[File], tally: Tally) -> list[File]:
    """The files without further names of the same file: a link if there is another name, and later hard links."""
    first: dict[tuple, File] = {}
    for file in sorted(files, key=lambda file: file.path.is_symlink()):
        if file.identity not in first:
            first[file.identity] = file
        elif file.path.is_symlink():
            tally.leave_out("link", "to a file that is read", str(file.path))
        else:
            tally.leave_out("file", "a second name of a file that is read", str(file.path), file.size)
    return sorted(first.values(), key=lambda file: file.path)


def read_files(files: list[File], tally: Tally, max_bytes: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of files, one after another, unpacked.

    Args:
        tally: counts what is read, and what is left out within the files.
        max_bytes: stop after this many.

    Raises:
        UserError: if a file cannot be read, see `unpack`.
    """
    total = 0
    for file in files:
        name = str(file.path)
        if total == max_bytes:
            tally.leave_out("file", "after data.max_bytes", name, file.size)
            continue
        before = total
        for piece in unpack(file.path, tally):
            room = len(piece) if max_bytes is None else max_bytes - total
            yield piece[:room]
            total += min(room, len(piece))
            if room < len(piece):
                tally.leave_out("end of a file", "after data.max_bytes", name)
                break
        if total == before:
            tally.leave_out("file", "empty", name, file.size)
        else:
            tally.files += 1
            tally.bytes += file.size


def fingerprint(files: list[File]) -> str:
    """A checksum that changes when a file is added, removed, renamed, resized or written again."""
    stats = [(str(file.path.resolve()), file.size, file.modified) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()
