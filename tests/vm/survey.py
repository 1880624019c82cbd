"""Prints what a directory tree is, a line of JSON for each path; runs in the guest and on the host alike."""

import hashlib
import json
import os
import stat
import sys

#: Larger files are looked at in places, not whole.
WHOLE = 64 << 20


def contents(path: bytes, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= WHOLE:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for offset in (0, 1 << 20, (1 << 31) - 4096, (1 << 31), (1 << 31) + 65536, size - 65536):
                file.seek(offset)
                digest.update(file.read(65536))
    return digest.hexdigest()


def describe(path: bytes, names: dict) -> dict:
    status = os.lstat(path)
    mode = status.st_mode
    found = {"mode": oct(mode), "uid": status.st_uid, "gid": status.st_gid, "mtime": status.st_mtime_ns}
    if stat.S_ISREG(mode):
        found["size"] = status.st_size
        found["contents"] = contents(path, status.st_size)
    elif stat.S_ISLNK(mode):
        found["target"] = os.fsencode(os.readlink(path)).hex()
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        found["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    if not stat.S_ISDIR(mode):
        found["links"] = status.st_nlink
        # The first name that the walk, which is sorted, meets stands for the inode.
        found["inode"] = names.setdefault((status.st_dev, status.st_ino), path.hex())
    attributes = {}
    for name in os.listxattr(path, follow_symlinks=False):
        attributes[name] = os.getxattr(path, name, follow_symlinks=False).hex()
    if attributes:
        found["attributes"] = attributes
    return found


def main(root: str, skipped: list) -> None:
    top = os.fsencode(root)
    names: dict = {}
    leave = {os.path.normpath(os.path.join(top, os.fsencode(s))) for s in skipped}
    print(json.dumps([b".".hex(), describe(top, names)]))
    todo = [top]
    while todo:
        directory = todo.pop()
        inside = []
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if os.path.normpath(path) in leave:
                continue
            relative = os.path.relpath(path, top)
            found = describe(path, names)
            if "inode" in found:
                found["inode"] = os.path.relpath(bytes.fromhex(found["inode"]), top).hex()
            print(json.dumps([relative.hex(), found]))
            if stat.S_ISDIR(os.lstat(path).st_mode):
                inside.append(path)
        todo.extend(reversed(inside))


main(sys.argv[1], sys.argv[2:])
