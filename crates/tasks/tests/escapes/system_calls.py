import ctypes

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
assert libc.unshare(CLONE_NEWUSER) == -1
assert libc.mount(b"none", b"/scratch", b"tmpfs", 0, None) == -1
assert libc.umount2(b"/scratch", 2) == -1
assert libc.ptrace(16, 1, 0, 0) == -1
assert libc.setns(0, 0) == -1
SYS_BPF, SYS_IO_URING_SETUP, SYS_KEYCTL, SYS_PERF, SYS_USERFAULTFD = 321, 425, 250, 298, 323
for number in (SYS_BPF, SYS_IO_URING_SETUP, SYS_KEYCTL, SYS_PERF, SYS_USERFAULTFD):
    assert libc.syscall(number, 0, 0, 0, 0, 0) == -1, number
