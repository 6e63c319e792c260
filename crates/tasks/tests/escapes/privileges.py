import os

for call in (
    lambda: os.setuid(0),
    lambda: os.setgroups([0]),
    lambda: os.chroot("/scratch"),
    lambda: os.chown("/scratch", 0, 0),
    lambda: os.mknod("device", 0o20666, os.makedev(1, 1)),
    lambda: os.nice(-5),
):
    try:
        call()
        assert False, "a privilege"
    except OSError:
        pass
