"""Takes rights away from tool code through the kernel: three protections, each by a mechanism that this machine has.

| protection | mechanisms |
|---|---|
| files (only the standard library is readable, nothing is writable) | mount namespace with a new root; Landlock |
| network | network namespace; seccomp |
| processes (no fork, exec, signals or tracing) | seccomp |

Limits on memory, CPU time, file size and open files are rlimits, which every machine has. This module runs only in the
child. It uses ctypes and imports nothing from the package. The tables of system calls cover x86-64 and arm64; on other
machines seccomp counts as missing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Iterable

NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PR_CAPBSET_DROP = 24
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
EPERM, ENOSYS = 1, 38

# Numbers of system calls by name. From 424 on, the numbers are the same on every machine.
_NEW = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsmount": 432, "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
_X86_64 = {
    "shmget": 29, "socket": 41, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "semget": 64,
    "msgget": 68, "ptrace": 101, "rt_sigqueueinfo": 129, "pivot_root": 155, "chroot": 161, "mount": 165,
    "umount2": 166, "tkill": 200, "tgkill": 234, "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250,
    "unshare": 272, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "prlimit64": 302, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "userfaultfd": 323,
}  # fmt: skip
_ARM64 = {
    "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "unshare": 97, "ptrace": 117, "kill": 129,
    "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194,
    "socket": 198, "socketpair": 199, "add_key": 217, "request_key": 218, "keyctl": 219, "execve": 221,
    "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261, "setns": 268, "process_vm_readv": 270,
    "process_vm_writev": 271, "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282,
}  # fmt: skip
# machine -> (audit architecture, denied calls, clone, clone3)
_MACHINES = {"x86_64": (0xC000003E, _X86_64, 56, 435), "aarch64": (0xC00000B7, _ARM64, 220, 435)}

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def _prctl(option: int, *arguments: int | ctypes.c_void_p) -> None:
    assert _libc is not None
    padded = [*(a if isinstance(a, ctypes.c_void_p) else ctypes.c_ulong(a) for a in arguments)]
    padded += [ctypes.c_ulong(0)] * (4 - len(padded))
    _check(_libc.prctl(option, *padded), f"prctl {option}")


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends.

    The parent must have only one thread, because the kernel watches the thread that forked.
    """
    if _libc is not None:
        _prctl(PR_SET_PDEATHSIG, 9)


def set_limits(memory_mb: int) -> None:
    """Set the limits of the whole worker. Each tool process sets the limits of its calls."""
    lower_limit(resource.RLIMIT_AS, memory_mb << 20)
    lower_limit(resource.RLIMIT_FSIZE, 0)
    lower_limit(resource.RLIMIT_NOFILE, 64)
    lower_limit(resource.RLIMIT_CORE, 0)


def lower_limit(limit: int, value: int) -> None:
    """Set a limit permanently, unless a smaller one is in force."""
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


# -- namespaces ------------------------------------------------------------------------------------------------------


def unshare_namespaces(as_root: bool = True) -> str:
    """Move into fresh namespaces. Returns 'root' or 'user' (how it was done), or '' if the kernel refuses.


    Root needs no user namespace, and can become the user nobody later. Other users need one, and keep their own id in
    it. The pid namespace begins with the next fork.
    """
    if _libc is None or platform.machine() not in _MACHINES:
        return ""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if as_root and uid == 0 and _libc.unshare(flags) == 0:
        return "root"
    if _libc.unshare(flags | CLONE_NEWUSER) != 0:
        return ""
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError:  # some distributions allow the namespace, but remove its capabilities
        return ""
    return "user"


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    assert _libc is not None
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()),
           f"mount {target}")  # fmt: skip


def make_root(readable: Iterable[str], hidden: Iterable[str]) -> None:
    """Make a new root that holds only `readable` (read-only, same paths), without `hidden`.

    Raises OSError if the kernel refuses.
    """
    assert _libc is not None
    # Open all paths first: a path may be under the mount point, or in a directory that only the old user may enter.
    sources = [(path, os.open(path, os.O_PATH), os.path.isdir(path)) for path in readable]
    root = "/tmp" if os.path.isdir("/tmp") else "/"
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for path, fd, is_dir in sources:
        target = root + path
        os.makedirs(target if is_dir else os.path.dirname(target), exist_ok=True)
        if not is_dir:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        source = f"/proc/self/fd/{fd}"
        _mount(source, target, "", MS_BIND)
        kept = _locked_flags(os.statvfs(target).f_flag)
        _mount("none", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)
        os.close(fd)
    for path in hidden:
        if os.path.isdir(root + path):
            _mount("tmpfs", root + path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=755")
    os.chdir(root)
    pivot = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _check(_libc.syscall(ctypes.c_long(pivot), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")
    _mount("none", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _locked_flags(statvfs: int) -> int:
    """Return the mount flags that a remount in a user namespace must repeat: noexec, noatime, nodiratime, relatime."""
    return (statvfs & (8 | 1024 | 2048)) | ((1 << 21) if statvfs & 4096 else 0)


def drop_privileges(change_user: bool) -> None:
    """Give up every capability permanently and, with `change_user`, become the user nobody."""
    assert _libc is not None
    for capability in range(64):
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)  # may fail: not there
    if change_user:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=Ii", 0x20080522, 0)
    _check(_libc.capset(header, bytes(24)), "capset")
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)  # tool processes of the same user cannot trace this one


# -- Landlock --------------------------------------------------------------------------------------------------------

_ACCESS_V1 = (1 << 13) - 1  # every right of the first version: read, write, execute, make, remove
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def restrict_files(readable: Iterable[str], hidden: Iterable[str]) -> None:
    """Allow reading `readable` without `hidden`, and no other access to files.

    `hidden` are direct children of a readable directory. Raises OSError if the kernel has no Landlock.
    """
    if _libc is None:
        raise OSError(ENOSYS, "landlock")
    attribute = struct.pack("=Q", _ACCESS_V1)
    ruleset = _check(_libc.syscall(444, attribute, len(attribute), 0), "landlock_create_ruleset")
    skip = set(hidden)
    for path in readable:
        entries = {path: _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE}
        if os.path.isdir(path) and any(os.path.dirname(name) == path for name in skip):
            entries = {path: _READ_DIR}  # imports list the directory, so the names in `hidden` stay visible
            for entry in os.scandir(path):
                if entry.path not in skip:
                    entries[entry.path] = _READ_FILE | _READ_DIR if entry.is_dir() else _READ_FILE
        for entry_path, rights in entries.items():
            fd = os.open(entry_path, os.O_PATH)
            rule = struct.pack("=Qi", rights, fd)
            _check(_libc.syscall(445, ruleset, 1, rule, 0), "landlock_add_rule")
            os.close(fd)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _check(_libc.syscall(446, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


# -- seccomp ---------------------------------------------------------------------------------------------------------


def _instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, value)


def seccomp_filter(machine: str) -> bytes:
    """Make a classic BPF program. The listed calls fail with EPERM; new threads are allowed, new processes are not."""
    arch, denied, clone, clone3 = _MACHINES[machine]
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, errno = 0x7FFF0000, 0x00050000
    program = [
        _instruction(load, 0, 0, 4),  # seccomp_data.arch
        _instruction(equal, 1, 0, arch),
        _instruction(give, 0, 0, errno | EPERM),
        _instruction(load, 0, 0, 0),  # seccomp_data.nr
        _instruction(at_least, 0, 1, 0x40000000),  # the x32 numbers of x86-64
        _instruction(give, 0, 0, errno | EPERM),
        _instruction(equal, 0, 1, clone3),  # a filter cannot see its flags; libc falls back to clone
        _instruction(give, 0, 0, errno | ENOSYS),
    ]
    for number in {**denied, **_NEW}.values():
        program += [_instruction(equal, 0, 1, number), _instruction(give, 0, 0, errno | EPERM)]
    program += [
        _instruction(equal, 0, 3, clone),
        _instruction(load, 0, 0, 16),  # low word of the first argument
        _instruction(bits, 1, 0, CLONE_THREAD),
        _instruction(give, 0, 0, errno | EPERM),
        _instruction(give, 0, 0, allow),
    ]
    return b"".join(program)


def seccomp_installer() -> Callable[[], None]:
    """Return a function that puts the calling process under the filter.

    Raises OSError if the kernel or the machine has no seccomp.
    """
    if _libc is None or platform.machine() not in _MACHINES:
        raise OSError(ENOSYS, "seccomp")
    code = seccomp_filter(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    # A null program gives EFAULT (14) if the kernel has filters, and EINVAL if it does not.
    if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), None, 0, 0) == 0 or ctypes.get_errno() != 14:
        raise OSError(ctypes.get_errno(), "seccomp")

    def install(_keep: object = buffer) -> None:
        _prctl(PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(program)))

    return install
