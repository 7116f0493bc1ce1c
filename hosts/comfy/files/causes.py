"""Why a file could not be written, and what helps: by the system's own error number."""

import errno
import os
import re

from safetensors import SafetensorError

from ....pipelines.errors import quoted

#: Cause and cure of what systems report.
CAUSES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your share of the disk is used up: free some space",
    errno.EFBIG: "its file system takes no file of this size: choose a folder on another disk",
    errno.EACCES: "ComfyUI has no right to write there: give it the right, or choose another name",
    errno.EPERM: "ComfyUI has no right to write there: give it the right, or choose another name",
    errno.EROFS: "the disk can only be read: choose a folder on another disk",
    errno.ENAMETOOLONG: "the name is too long: shorten it",
    errno.EINVAL: "the disk's file system takes no such name: use letters, digits, - and _",
    errno.EILSEQ: "the disk's file system takes no such name: use letters, digits, - and _",
    errno.ENOTDIR: "a file stands where its folder should be: choose another name",
    errno.EEXIST: "a file stands where its folder should be: choose another name",
    errno.ELOOP: "its folder is a link that leads to itself: choose another name",
    errno.ENOENT: "its folder has vanished: save again",
    errno.EIO: "the disk reports an error: check it, or choose a folder on another one",
    errno.EMFILE: "too many files are open: restart ComfyUI",
}


def not_written(what: str, name: str, why: str) -> str:
    """The sentence for a file that cannot be written.

    Args:
        what: What it is called, to begin a sentence.
        name: Its name.
        why: Cause and cure, of `CAUSES`.
    """
    return f"{what} could not be written to {quoted(name)}, because {why}."


def cause(error: OSError | SafetensorError) -> str:
    """Cause and cure of a write that failed, without a full stop."""
    if not isinstance(error, OSError):
        error = _told_by_rust(error)
    reason = error.strerror or type(error).__name__
    return CAUSES.get(error.errno, f"{reason}: choose another name or folder")


def _told_by_rust(error: SafetensorError) -> OSError:
    """The system's error in what safetensors says: "I/O error: ... (os error 28)"."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(None, str(error).partition("\n")[0])
    number = int(found[1])
    # Windows counts its own way and Python translates the fourth; elsewhere the first is taken.
    return OSError(number, os.strerror(number), None, number)
