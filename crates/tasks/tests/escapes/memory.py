kept = []
try:
    while True:
        kept.append(bytearray(16 << 20))
except MemoryError:
    count = len(kept)
    del kept
assert count < 16, count
