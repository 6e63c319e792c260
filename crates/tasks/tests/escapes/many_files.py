count = 0
try:
    while True:
        open(f"f{count}", "x").close()
        count += 1
except OSError:
    pass
assert count < 5000, count
