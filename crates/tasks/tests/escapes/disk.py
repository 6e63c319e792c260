written = 0
try:
    for number in range(64):
        with open(f"file{number}", "wb") as file:
            file.write(b"x" * (1 << 20))
        written += 1
    assert False, "64 MiB"
except OSError:
    pass
assert written <= 8, written
try:
    with open("sparse", "wb") as file:
        file.truncate(1 << 40)
    assert False, "a sparse file"
except OSError:
    pass
