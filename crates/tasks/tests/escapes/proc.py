import os

assert not os.path.exists("/proc/self")
assert not os.path.exists("/proc/1/root/etc/passwd")
assert not os.path.exists("/sys/kernel")
assert not os.path.exists("/dev/mem") and not os.path.exists("/dev/sda") and not os.path.exists("/dev/vda")
