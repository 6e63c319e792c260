import socket

for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    try:
        socket.socket(family, socket.SOCK_STREAM)
        assert False, family
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", 22), 1)
    assert False
except OSError:
    pass
