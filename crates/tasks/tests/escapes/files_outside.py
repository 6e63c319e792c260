import os

allowed = {"usr", "lib", "lib64", "bin", "dev", "init", "scratch"}
interpreter = os.path.realpath(os.__file__).split("/")[1]
assert set(os.listdir("/")) <= allowed | {interpreter}, os.listdir("/")
assert set(os.listdir("/dev")) == {"null", "zero", "random", "urandom"}
for folder, _, names in os.walk("/"):
    if folder.startswith(("/scratch", "/dev")):
        continue
    assert not os.access(folder, os.W_OK), folder
    if folder.count("/") > 3:
        _.clear()
for call in (lambda: os.remove("/init"), lambda: os.rename("/usr", "/usr2"), lambda: os.mkdir("/new")):
    try:
        call()
        assert False
    except OSError:
        pass
