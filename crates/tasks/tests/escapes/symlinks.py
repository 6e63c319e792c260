import os

os.symlink("/etc/passwd", "a")
os.symlink("../../../../../../etc/shadow", "b")
os.symlink("/", "root")
for name in ("a", "b", "root/etc/passwd", "root/old/etc/passwd", "../../../../etc/passwd"):
    assert not os.path.exists(name), name
for path in ("/usr/lib/x", "/root/x", "/x", "root/x"):
    try:
        open(path, "w")
        assert False, path
    except OSError:
        pass
try:
    os.link("/usr/bin/env", "hard")
    assert False, "a hard link"
except OSError:
    pass
